"""`cut_earlier_caches`: later tokens see in every layer what the last stage kept, and the prompt stays as it was.

The oracle is the unpruned model on the whole sequence: rows of the prompt see in each layer what the stages before it
left, rows behind the prompt only what the last stage left (``masked`` with the length of the prompt).
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import tokenprune as tp
from tests.engine.test_engine_oracle import skip_refused
from tests.engine.test_invariants import flash_like
from tests.engine.test_renumber import SEVERAL, numbered_by_layer
from tests.support import matrix
from tests.support.matrix import Cell, generate, model_of, run_cell
from tests.support.oracle import (
    Inputs,
    Stage,
    decoder_layers,
    extended,
    masked,
    oracle_generate_logits,
    positions_of_generate,
    tolerance,
)
from tests.support.tiny import CASES, CORE
from tests.support.tiny.core import CACHE, TRANSFORMERS
from tokenprune.adapters import adapter_for
from tokenprune.budgets.keep import KeepCount
from tokenprune.engine.plan import Plan
from tokenprune.errors import UnsupportedFeatureError, UnsupportedModelError
from tokenprune.experiment.config import MethodEntry
from tokenprune.flops.decoder import kv_cache_bytes
from tokenprune.measure.estimate import estimate

torch.set_num_threads(1)
GENERATING = ("greedy", "sample", "beam")
CELLS = [
    replace(cell, cut=True)
    for cell in matrix.cells(list(CORE)) + matrix.cells([name for name in CASES if name not in CORE], thin=True)
    if cell.mode in GENERATING and cell.layer != "0"
]
BF16 = [Cell(name, "sdpa", "left", "ragged", "middle", "greedy", torch.bfloat16, True) for name in ("llava", "gemma3")]
COUNT = {"name": "keep_count", "tokens": 5}


def cutting(layers: list[int], budget: dict[str, Any], **fields: Any) -> Any:
    return matrix.method(layers, budget, cut_earlier_caches=True, **fields)


@pytest.mark.each("cell.family", "cell.dtype")
@pytest.mark.parametrize("cell", [*CELLS, *BF16], ids=str)
def test_every_step_is_the_oracles(cell: Cell) -> None:
    """Families x attention x padding x kept counts x layers, greedy, sampled, and with beams."""
    try:
        judged = run_cell(cell)
    except tp.TokenPruneError as error:
        if isinstance(error, UnsupportedModelError) and CASES[cell.family].hybrid:
            pytest.skip(f"refused: {error}")
        skip_refused(cell.family, error)
        return
    assert judged.worst <= judged.allowed


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "gemma3", "qwen3_vl"])
@torch.no_grad()
def test_the_prompt_is_bitwise_the_same_and_what_follows_is_not(name: str) -> None:
    case, model = CASES[name], model_of(name, "sdpa")
    inputs = case.batch(model, 3, "left", variant="ragged").inputs
    middle = len(decoder_layers(model)) // 2
    out = []
    for how in (matrix.method([middle], COUNT), cutting([middle], COUNT)):
        with tp.apply(model, how) as run:
            whole, steps = model(**inputs).logits, generate(model, inputs)
        out.append((whole, torch.stack(steps.logits, 1), [stage.kept for stage in run.stages]))
    (plain, without, kept), (cut, within, same) = out
    assert torch.equal(plain, cut)
    assert torch.equal(without[:, 0], within[:, 0])
    assert all(map(torch.equal, kept, same))
    assert matrix.difference(without[:, 1], within[:, 1]) > 1e-3


@pytest.mark.parametrize("budget", [*SEVERAL, "the first drops nothing", "the last drops nothing"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "gemma3", "qwen3_vl", "paligemma"])
@torch.no_grad()
def test_several_stages(name: str, attention: str, budget: str) -> None:
    """Every layer holds what the last stage that dropped something kept, also the layers between two stages."""
    case, model = CASES[name], model_of(name, attention)
    inputs = case.batch(model, 3, "left", seed=2, variant="ragged").inputs
    budgets = {
        **SEVERAL,
        "the first drops nothing": {"name": "keep_schedule", "tokens": [1000, 6]},
        "the last drops nothing": {"name": "keep_schedule", "tokens": [7, 7]},
    }
    with tp.apply(model, cutting([1, 3], budgets[budget])) as run:
        out = generate(model, inputs)
    stages = matrix.stages_of(run)
    generated = out.sequences[:, -matrix.STEPS :]
    expected = oracle_generate_logits(model, inputs, generated, stages, case.visual_ids, case.appended, cut=True)
    assert matrix.difference(torch.stack(out.logits, 1), expected) <= tolerance(expected)


@torch.no_grad()
def renumbered_logits(model: Any, name: str, inputs: Inputs, generated: Tensor, stages: list[Stage]) -> Tensor:
    """Logits from which each token was taken, where every layer numbers what it saw of the prompt, and goes on."""
    case = CASES[name]
    sequence = extended(inputs, generated, case.appended)
    given = positions_of_generate(model, sequence)
    with (
        numbered_by_layer(model, sequence, stages, case.visual_ids, given),
        masked(model, sequence, stages, case.visual_ids, inputs["input_ids"].shape[1]),
    ):
        logits: Tensor = model(**sequence, position_ids=given, use_cache=False).logits
    return logits[:, -generated.shape[1] - 1 : -1]


@pytest.mark.each("name")
@pytest.mark.parametrize("budget", SEVERAL)
@pytest.mark.parametrize("name", ["llava", "llava_onevision", "qwen2_5_vl", "qwen3_vl"])
@torch.no_grad()
def test_renumbered_positions(name: str, budget: str) -> None:
    """Before the first stage later tokens keep the model's positions; behind it they go on where the layer is."""
    model = model_of(name, "sdpa")
    inputs = CASES[name].batch(model, 3, "left", seed=1, variant="ragged").inputs
    layers = [1, len(decoder_layers(model)) - 1]
    with tp.apply(model, cutting(layers, SEVERAL[budget], positions="renumbered")) as run:
        ours = generate(model, inputs)
    expected = renumbered_logits(model, name, inputs, ours.sequences[:, -matrix.STEPS :], matrix.stages_of(run))
    assert matrix.difference(torch.stack(ours.logits, 1), expected) <= tolerance(expected)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("variant", ["image", "ragged"])
@torch.no_grad()
def test_windows_slide_on(variant: Any, attention: str) -> None:
    """Windows of 10 tokens, prompts of up to 72 and 14 steps: what was kept leaves the windows on the way."""
    case, model = CASES["gemma3"], model_of("gemma3", attention)
    inputs = case.batch(model, 3, "left", seed=3, variant=variant).inputs
    for layers in ([3], [1, 4], [5]):
        budget = {"name": "keep_ratio", "ratio": 0.5}
        with tp.apply(model, cutting(layers, budget)) as run:
            out = model.generate(**inputs, max_new_tokens=14, output_logits=True, return_dict_in_generate=True)
        generated = out.sequences[:, -14:]
        stages = matrix.stages_of(run)
        expected = oracle_generate_logits(model, inputs, generated, stages, case.visual_ids, case.appended, cut=True)
        assert matrix.difference(torch.stack(out.logits, 1), expected) <= tolerance(expected)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("variant", ["image", "ragged"])
@torch.no_grad()
def test_two_dimensional_masks(variant: Any, batch: int) -> None:
    """The interface of flash attention."""
    name, case = "flash_attention_like", CASES["llava"]
    ALL_ATTENTION_FUNCTIONS.register(name, flash_like)
    ALL_MASK_ATTENTION_FUNCTIONS.register(name, ALL_MASK_ATTENTION_FUNCTIONS["flash_attention_2"])
    model: Any = case.build()
    inputs = case.batch(model, batch, "left", variant=variant).inputs
    model.get_decoder().config._attn_implementation = name
    with tp.apply(model, cutting([2], {"name": "keep_ratio", "ratio": 0.4})) as run:
        out = generate(model, inputs)
    model.get_decoder().config._attn_implementation = "sdpa"
    generated, stages = out.sequences[:, -matrix.STEPS :], matrix.stages_of(run)
    expected = oracle_generate_logits(model, inputs, generated, stages, case.visual_ids, cut=True)
    assert matrix.difference(torch.stack(out.logits, 1), expected) <= tolerance(expected)


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "gemma3"])
@torch.no_grad()
def test_a_later_turn_of_text(name: str) -> None:
    """Several tokens at once on the cut cache: they see the kept tokens and each other."""
    case, model = CASES[name], model_of(name, "sdpa")
    inputs = case.batch(model, 2, seed=7).inputs
    with tp.apply(model, cutting([2], COUNT)) as run:
        first = generate(model, inputs)
        stages = matrix.stages_of(run)
        more = torch.randint(3, 100, (2, 3), generator=torch.Generator().manual_seed(0))
        turn = torch.cat([first.sequences, more], 1)
        second = generate(model, {"input_ids": turn, "attention_mask": torch.ones_like(turn)}, **{CACHE: first[CACHE]})
    tail = second.sequences[:, inputs["input_ids"].shape[1] :]
    expected = oracle_generate_logits(model, inputs, tail, stages, case.visual_ids, case.appended, cut=True)
    ours = torch.stack(second.logits, 1)
    assert matrix.difference(ours, expected[:, -matrix.STEPS :]) <= tolerance(expected)


@torch.no_grad()
def test_copies_of_the_cache_and_picked_samples() -> None:
    """A copy answers as the cache does; samples can be picked and repeated."""
    case, model = CASES["llava"], model_of("llava", "sdpa")
    inputs = case.batch(model, 3, "left", variant="ragged").inputs
    step = {"input_ids": torch.tensor([[9], [8], [7]])}
    mask = torch.cat([inputs["attention_mask"], torch.ones(3, 1, dtype=torch.long)], 1)
    with tp.apply(model, cutting([2], {"name": "keep_ratio", "ratio": 0.4})):
        cache = model(**inputs)[CACHE]
        copied, picked = copy.deepcopy(cache), copy.deepcopy(cache)
        expected = model(**step, attention_mask=mask, **{CACHE: cache}).logits
        assert torch.equal(model(**step, attention_mask=mask, **{CACHE: copied}).logits, expected)
        order = torch.tensor([2, 0])
        picked.batch_select_indices(order)
        picked.batch_repeat_interleave(2)
        twice = order.repeat_interleave(2)
        found = model(input_ids=step["input_ids"][twice], attention_mask=mask[twice], **{CACHE: picked}).logits
        torch.testing.assert_close(found, expected[twice])


# ---- what it saves ---


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
@torch.no_grad()
def test_the_memory_that_is_saved_is_reported(name: str) -> None:
    """Every layer holds the text and the kept tokens: the report, the closed form, and the cache itself."""
    case, model = CASES[name], model_of(name, "sdpa")
    inputs = case.batch(model, 1).inputs
    text = int((~torch.isin(inputs["input_ids"], torch.tensor(case.visual_ids))).sum())
    layers = len(decoder_layers(model))
    found = {}
    for cut in (False, True):
        with tp.apply(model, matrix.method([2], COUNT, cut_earlier_caches=cut)) as run:
            cache = model(**inputs)[CACHE]
        report = found[cut] = run.report
        config = model.config.get_text_config()
        assert report.kv_bytes == kv_cache_bytes(config, report.cached_per_layer(), 4)
        assert report.kv_bytes == sum(s.numel() * 4 for layer in cache.layers for s in (layer.keys, layer.values))
    assert found[True].cached_per_layer() == [text + 5] * layers
    assert found[True].tokens_per_layer() == found[False].tokens_per_layer() == found[False].cached_per_layer()
    assert found[True].kv_bytes < found[False].kv_bytes < found[True].kv_bytes_unpruned
    assert found[True].kv_bytes_unpruned == found[False].kv_bytes_unpruned
    assert found[True].flops() == found[False].flops()


def test_the_estimate_counts_what_is_cut() -> None:
    """LLaVA-1.5-7B with 60 text tokens: bytes and the decode step, not the prefill."""
    cut = tp.load_method("priortr", model="LLaVA-1.5-7B")
    plain = cut.model_copy(update={"cut_earlier_caches": False})
    one, other = estimate("llava-1.5-7b", cut, 60), estimate("llava-1.5-7b", plain, 60)
    per_token = 2 * 4096 * 2
    assert one["kv_cache_bytes"]["pruned"] == 32 * (60 + 192) * per_token
    assert other["kv_cache_bytes"]["pruned"] == (32 * 60 + 3 * 576 + 29 * 192) * per_token
    assert one["decode_step"]["flops_pruned"] < other["decode_step"]["flops_pruned"]
    assert one["total"] == other["total"]


# ---- where nothing is cut, and what is refused ---


@pytest.mark.parametrize("variant", ["text", "image"])
@torch.no_grad()
def test_where_nothing_is_dropped_nothing_is_cut(variant: Any) -> None:
    case, model = CASES["llava"], model_of("llava", "sdpa")
    inputs = case.batch(model, 3, "left", variant=variant).inputs
    plain = generate(model, inputs)
    with tp.apply(model, cutting([2], {"name": "keep_ratio", "ratio": 1.0})) as run:
        under = generate(model, inputs)
    assert torch.equal(torch.stack(under.logits), torch.stack(plain.logits))
    assert run.report.kv_bytes in (0, run.report.kv_bytes_unpruned)


@torch.no_grad()
def test_all_visual_tokens_may_go() -> None:
    case, model = CASES["llava"], model_of("llava", "sdpa")
    inputs = case.batch(model, 3, "left", variant="ragged").inputs
    with tp.apply(model, cutting([2], {"name": "drop_all"})) as run:
        out = generate(model, inputs)
    generated, stages = out.sequences[:, -matrix.STEPS :], matrix.stages_of(run)
    expected = oracle_generate_logits(model, inputs, generated, stages, case.visual_ids, cut=True)
    assert matrix.difference(torch.stack(out.logits, 1), expected) <= tolerance(expected)


@torch.no_grad()
def test_generation_without_a_cache_is_refused() -> None:
    """In `generate`, before anything runs; and the second of two forwards by hand. One forward is a prompt."""
    case, model = CASES["llava"], model_of("llava", "sdpa")
    inputs = case.batch(model, 2).inputs
    ran: list[int] = []
    handle = decoder_layers(model)[0].register_forward_hook(lambda *_: ran.append(1))
    with tp.apply(model, cutting([2], COUNT)):
        with pytest.raises(UnsupportedFeatureError, match=r"cut_earlier_caches in a generation without a KV cache"):
            generate(model, inputs, use_cache=False)
        assert not ran
        model(**inputs, use_cache=False)
        longer = extended(inputs, torch.full((2, 1), 9))
        with pytest.raises(UnsupportedFeatureError, match="set cut_earlier_caches to false"):
            model(**longer, use_cache=False)
    handle.remove()


@pytest.mark.skipif(TRANSFORMERS < (5, 23), reason="images are not encoded before the chunks")
@torch.no_grad()
def test_prompts_in_chunks_are_refused() -> None:
    case, model = CASES["llava"], model_of("llava", "sdpa")
    inputs = case.batch(model, 1, "none").inputs
    size = int((inputs["input_ids"] == 150).nonzero().max()) + 1
    with tp.apply(model, cutting([2], COUNT)), pytest.raises(UnsupportedFeatureError, match=f"chunk_size={size} with"):
        model.generate(**inputs, max_new_tokens=2, prefill_chunk_size=size)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.hybrid])
def test_layers_before_the_stage_must_be_cut_exactly(name: str) -> None:
    """A recurrent state has no rows: such a layer may lie before a stage, and not with its cache cut."""
    case = CASES[name]
    model = model_of(name, case.attentions[0])
    last = len(decoder_layers(model)) - 1
    with tp.apply(model, matrix.method([last], COUNT)):
        pass
    with (
        pytest.raises(UnsupportedModelError, match=r"^cut_earlier_caches: .*layer 0 .*to false$"),
        tp.apply(model, cutting([last], COUNT)),
    ):
        pass


def test_flash_attention_with_windows_before_the_stage_is_refused() -> None:
    """The kernel counts its window in cached tokens."""
    model: Any = CASES["gemma3"].build()
    model.get_decoder().config._attn_implementation = "flash_attention_2"
    adapter = adapter_for(model)
    with pytest.raises(UnsupportedFeatureError, match=r"cut_earlier_caches: .* prune layer 0 \(sliding_attention\)"):
        Plan.of(cutting([5], COUNT), (5,), adapter)
    Plan.of(matrix.method([5], COUNT), (5,), adapter)


# ---- the field ---


def test_definitions_of_methods_without_it_stay_what_they_were() -> None:
    """Files of earlier versions are compared with what a method says of itself."""
    plain, cut = matrix.method([2], COUNT), cutting([2], COUNT)
    assert "cut_earlier_caches" not in plain.model_dump(mode="json")
    assert "cut_earlier_caches" not in plain.to_yaml()
    assert cut.model_dump(mode="json")["cut_earlier_caches"] is True
    for method in (plain, cut):
        assert tp.Method.from_dict(method.model_dump(mode="json")) == method
    assert tp.Method.from_dict({**plain.model_dump(mode="json"), "cut_earlier_caches": False}) == plain


def test_an_entry_of_an_experiment_says_it() -> None:
    budget = KeepCount(tokens=5)
    assert MethodEntry(name="fastv", cut_earlier_caches=True).method(budget).cut_earlier_caches
    assert not MethodEntry(name="priortr").method(budget).cut_earlier_caches
    published = tp.load_method("priortr", model="LLaVA-1.5-7B")
    assert published.cut_earlier_caches
    entry = MethodEntry(name="fastv", cut_earlier_caches=False)
    assert not entry.alone
    with pytest.raises(ValueError, match="remove cut_earlier_caches"):
        MethodEntry(name="tuned", cut_earlier_caches=True)
