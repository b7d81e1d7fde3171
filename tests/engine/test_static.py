"""Static caches: exact against the oracle, compiled decode steps in one graph, and what happens at their limits."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters
from transformers import CompileConfig, DynamicCache, PreTrainedModel, StaticCache

import tokenprune as tp
from tests.support import compiling, matrix
from tests.support.matrix import difference
from tests.support.oracle import Inputs, oracle_generate_logits, tolerance
from tests.support.simple import KEPT, fastv, pair
from tests.support.tiny import CASES, CORE
from tests.support.tiny.core import CACHE, Padding, Variant
from tests.support.windows import wide_gemma
from tokenprune.engine.cache import cache_bytes
from tokenprune.engine.caches.static import PrunedStaticLayer
from tokenprune.errors import UnsupportedFeatureError

BACKEND = "eager"  # Dynamo traces and guards; nothing is lowered
#: The tiny Gemma 3 has a window of 10 tokens, and its prompts are longer: see test_windows.
FAMILIES = [name for name in CORE if name != "gemma3"]


@pytest.fixture(autouse=True)
def _fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def generate(model: PreTrainedModel, inputs: Inputs, new: int = 4, **more: Any) -> Any:
    """`generate` of exactly `new` tokens."""
    fixed = {"max_new_tokens": new, "min_new_tokens": new, "return_dict_in_generate": True, "output_logits": True}
    return model.generate(**inputs, **fixed, **more)


def static(**more: Any) -> dict[str, Any]:
    """Generation on a static cache, eagerly."""
    return {"cache_implementation": "static", "disable_compile": True, **more}


def compiled() -> dict[str, Any]:
    """Generation on a static cache, whose decode steps transformers compiles as one graph, also on a CPU."""
    config = CompileConfig(backend=BACKEND, mode=None, fullgraph=True)
    config._compile_all_devices = True
    return {"cache_implementation": "static", "compile_config": config}


def graphs() -> int:
    """Graphs that Dynamo made; it broke none."""
    assert not counters["graph_break"], counters["graph_break"]
    return int(counters["stats"]["unique_graphs"])


def room(inputs: Inputs, new: int) -> int:
    """Tokens of a static cache for a prompt and `new` tokens."""
    return inputs["input_ids"].shape[1] + new


def cache_for(model: PreTrainedModel, inputs: Inputs, new: int = 4) -> StaticCache:
    """A static cache with room for a prompt and `new` tokens."""
    return StaticCache(config=model.config.get_text_config(), max_cache_len=room(inputs, new))


def shallow(**more: Any) -> tuple[PreTrainedModel, dict[str, Tensor]]:
    """The tiny LLaVA with one layer before the stage and one behind it: Dynamo traces every layer anew."""
    model, inputs = pair(**more)
    decoder: Any = model.get_decoder()
    decoder.layers = decoder.layers[:2]
    decoder.config.num_hidden_layers = 2
    return model, inputs


def steps(call: Any, inputs: Inputs, cache: Any, new: int = 4) -> Tensor:
    """Logits of the last row of a prefill and of decode steps with fixed tokens, of calls of a model."""
    mask = inputs["attention_mask"]
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    given: dict[str, Any] = dict(inputs)
    out = []
    for token in range(3, 3 + new):
        given |= {"attention_mask": mask, "position_ids": positions, CACHE: cache}
        out.append(call(**given).logits[:, -1])
        mask, positions = torch.cat([mask, mask.new_ones(len(mask), 1)], 1), positions[:, -1:] + 1
        given = {"input_ids": torch.full((len(mask), 1), token)}
    return torch.stack(out, 1)


def dynamic(model: PreTrainedModel) -> DynamicCache:
    return DynamicCache(config=model.config.get_text_config())


# ---- exact ---


CELLS: list[tuple[str, list[int], Variant, Padding, bool]] = [
    ("sdpa", [1, 3], "ragged", "left", False),
    ("eager", [0], "ragged", "left", False),
    ("sdpa", [2], "multi", "left", True),
    ("eager", [2], "image", "none", False),
]


@pytest.mark.parametrize(
    ("name", "cell"),
    [
        (name, cell)
        for number, name in enumerate(FAMILIES)
        for cell in (CELLS if name == "llava" else (CELLS[number % 4], CELLS[(number + 1) % 4]))
    ],
    ids=str,
)
@torch.no_grad()
def test_a_static_cache_is_the_oracle(name: str, cell: tuple[str, list[int], Variant, Padding, bool]) -> None:
    """Prefill and decode steps, run eagerly."""
    attention, layers, variant, padding, cut = cell
    case, model = CASES[name], matrix.model_of(name, attention)
    inputs = case.batch(model, 3, padding, seed=1, variant=variant).inputs
    how = matrix.method(layers, matrix.budget_of(variant), cut_earlier_caches=cut)
    with tp.apply(model, how) as run:
        out = generate(model, inputs, **static())
    stages = matrix.checked_stages(run, inputs, case)
    new = out.sequences[:, inputs["input_ids"].shape[1] :]
    expected = oracle_generate_logits(model, inputs, new, stages, case.visual_ids, case.appended, cut)
    assert difference(torch.stack(out.logits, 1), expected) <= tolerance(expected)


@pytest.mark.parametrize("scorer", ["fastv", {"name": "fastv", "at": "entering"}], ids=str)
@torch.no_grad()
def test_scorers_that_read_attention_do_not_see_free_rows(scorer: Any) -> None:
    model, inputs = pair(batch=3, variant="ragged")
    how = tp.Method(
        layers={"name": "fixed", "layers": [1, 2]},
        pruner={"name": "topk", "scorer": scorer},
        budget={"name": "keep_ratio", "ratio": 0.4},
    )
    with tp.apply(model, how) as run:
        expected = generate(model, inputs)
        kept = [stage.kept for stage in run.stages]
        out = generate(model, inputs, **static())
        assert all(torch.equal(stage.kept, before) for stage, before in zip(run.stages, kept, strict=True))
    assert difference(torch.stack(out.logits, 1), torch.stack(expected.logits, 1)) <= 1e-5


@torch.no_grad()
def test_a_budget_in_flops_counts_no_padding() -> None:
    """`generate` makes masks of four axes for a static cache; padding is read from them."""
    model, inputs = pair(batch=3, padding="left", variant="ragged")
    how = tp.Method(
        layers={"name": "fixed", "layers": [1]},
        pruner={"name": "topk", "scorer": "fastv"},
        budget={"name": "flops_reduction", "percent": 30, "scope": "decoder"},
    )
    with tp.apply(model, how) as run:
        generate(model, inputs)
        after = run.report.after
        generate(model, inputs, **static())
        assert run.report.after == after


@pytest.mark.parametrize("renumbered", [False, True])
@pytest.mark.parametrize("more", [{"num_beams": 3}, {"do_sample": True, "num_return_sequences": 2}], ids=str)
@torch.no_grad()
def test_beams_and_samples(more: dict[str, Any], renumbered: bool) -> None:
    model, inputs = pair(batch=2, variant="ragged")
    how = matrix.method([1, 2], matrix.budget_of("ragged"), positions="renumbered" if renumbered else "original")
    with tp.apply(model, how) as run:
        torch.manual_seed(0)
        run.annotate(sample_ids=[0, 1])  # the seeds of the scores
        expected = generate(model, inputs, **more)
        torch.manual_seed(0)
        run.annotate(sample_ids=[0, 1])
        out = generate(model, inputs, **more, **static())
    assert torch.equal(out.sequences, expected.sequences)


@torch.no_grad()
def test_a_cache_of_the_callers() -> None:
    """Calls of the model itself; a further turn of several tokens; the bytes that are saved."""
    model, inputs = pair(batch=3, variant="ragged")
    turn = torch.full((3, 5), 7)
    with tp.apply(model, fastv([1, 2], name="keep_ratio", ratio=0.4)) as run:
        caches = [dynamic(model), cache_for(model, inputs, 200)]
        expected, got = (steps(model, inputs, cache) for cache in caches)
        assert difference(got, expected) <= 1e-5
        mask = torch.cat([inputs["attention_mask"], torch.ones(3, 8, dtype=torch.long)], 1)
        positions = (mask.cumsum(1) - 1)[:, -5:]
        later = [
            model(input_ids=turn, attention_mask=mask, position_ids=positions, **{CACHE: cache}).logits
            for cache in caches
        ]
        assert difference(*later) <= 1e-5
        report = run.report
    held = [layer.max_cache_len for layer in caches[1].layers]
    full = room(inputs, 200)
    rows = [max(stage.rows.shape[1] for stage in run.stages[: number + 1][-1:]) for number in range(2)]
    assert held == [full, *[min(-(-(full - room(inputs, 0) + left) // 64) * 64, full) for left in (*rows, rows[1])]]
    per_row = cache_bytes(caches[1]) // sum(held)
    assert (report.kv_bytes, report.kv_bytes_unpruned) == (per_row * sum(held), per_row * full * len(held))


@torch.no_grad()
def test_windows() -> None:
    """A static layer whose window is longer than the cache is full attention; a shorter one is refused by name."""
    case, model = CASES["gemma3"], CASES["gemma3"].build()
    inputs = case.batch(model, 2, "left", variant="image").inputs
    how = matrix.method([1], matrix.budget_of("image"))
    with tp.apply(model, how), pytest.raises(UnsupportedFeatureError, match="longer than a sliding window of 10"):
        generate(model, inputs, **static())
    model = wide_gemma(100)
    with tp.apply(model, how) as run:
        out = generate(model, inputs, **static())
    new = out.sequences[:, -4:]
    expected = oracle_generate_logits(model, inputs, new, matrix.stages_of(run), case.visual_ids, case.appended)
    assert difference(torch.stack(out.logits, 1), expected) <= tolerance(expected)


# ---- compiled ---


@pytest.mark.parametrize(
    ("name", "attention", "layers", "variant", "padding", "positions"),
    [
        ("llava", "sdpa", [1, 3], "ragged", "left", "original"),
        ("qwen2_5_vl", "eager", [2], "ragged", "left", "renumbered"),
        ("qwen3_vl", "sdpa", [0], "image", "none", "original"),
    ],
)
@torch.no_grad()
def test_decoding_is_one_graph(
    name: str, attention: str, layers: list[int], variant: Variant, padding: Padding, positions: str
) -> None:
    """The prompt is pruned eagerly; transformers compiles the steps, and the next prompt of its shape compiles none."""
    case, model = CASES[name], CASES[name].build(attention)
    first, second = (case.batch(model, 3, padding, seed=seed, variant=variant).inputs for seed in (1, 1))
    how = matrix.method(layers, matrix.budget_of(variant), positions=positions)
    with tp.apply(model, how) as run:
        run.annotate(sample_ids=[0, 1, 2])
        expected = generate(model, first, new=6)
        out = generate(model, first, new=6, **compiled())
        assert graphs() == 1
        run.annotate(sample_ids=[3, 4, 5])  # other tokens are kept
        generate(model, second, new=6, **compiled())
        assert graphs() == 1
    assert torch.equal(out.sequences, expected.sequences)
    assert difference(torch.stack(out.logits, 1), torch.stack(expected.logits, 1)) <= tolerance(expected.logits[0])


@torch.no_grad()
def test_256_tokens_in_one_graph() -> None:
    model, inputs = shallow()
    with tp.apply(model, fastv()):
        expected = generate(model, inputs, new=256)
        out = generate(model, inputs, new=256, **compiled())
    assert graphs() == 1
    assert difference(torch.stack(out.logits, 1), torch.stack(expected.logits, 1)) <= 1e-5


@torch.no_grad()
def test_prompts_that_lose_nothing_decode_compiled_too() -> None:
    """A text, a block that does not prune, and the same model before and after the block."""
    model, inputs = shallow()
    text = {"input_ids": torch.randint(3, 100, (2, 9)), "attention_mask": torch.ones(2, 9, dtype=torch.long)}
    expected = [generate(model, prompt) for prompt in (text, inputs)]
    before = generate(model, inputs, **compiled())
    with tp.apply(model, fastv()) as run:
        pruned = generate(model, inputs)
        got = [generate(model, text, **compiled())]
        assert torch.equal(generate(model, inputs, **compiled()).sequences, pruned.sequences)
        with run.using(None):
            got.append(generate(model, inputs, **compiled()))
    after = generate(model, inputs, **compiled())
    assert not counters["graph_break"]
    for one, other in zip([*got, before, after], [*expected, expected[1], expected[1]], strict=True):
        assert difference(torch.stack(one.logits, 1), torch.stack(other.logits, 1)) <= 1e-5


WAYS: list[Callable[[Any], tuple[Any, Any]]] = [
    compiling.wrapped_whole,
    compiling.wrapped,
    compiling.in_place,
    compiling.forward,
    compiling.language_model,
    compiling.language_model_in_place,
    compiling.decoder_forward,
    compiling.every_layer,
]


@pytest.mark.parametrize("way", WAYS)
@torch.no_grad()
def test_what_the_caller_compiled_decodes_compiled(way: Callable[[Any], tuple[Any, Any]]) -> None:
    """`torch.compile` before `apply`: prefills run eagerly, steps do not."""
    model, inputs = shallow(batch=3, variant="ragged")
    how = fastv(name="keep_ratio", ratio=0.4)
    with tp.apply(model, how):
        expected = steps(model, inputs, dynamic(model))
    given, called = way(model)
    with tp.apply(given, how):
        got = steps(called, inputs, cache_for(model, inputs))
    assert difference(got, expected) <= 1e-5
    assert counters["stats"]["unique_graphs"] >= 1


@torch.no_grad()
def test_what_is_compiled_inside_the_block_decodes_compiled() -> None:
    model, inputs = shallow(batch=3, variant="ragged")
    with tp.apply(model, fastv(name="keep_ratio", ratio=0.4)):
        expected = steps(model, inputs, dynamic(model))
        called = torch.compile(model, backend=BACKEND)
        prefill = counters["stats"]["unique_graphs"]
        got = steps(called, inputs, cache_for(model, inputs))
    assert difference(got, expected) <= 1e-5
    assert counters["stats"]["unique_graphs"] > prefill


# ---- limits ---


@torch.no_grad()
def test_a_pruned_static_cache_belongs_to_its_block() -> None:
    """After the block, and in another one, eagerly and compiled."""
    model, inputs = shallow()
    step, other = (torch.compile(one.__call__, backend=BACKEND) for one in (model, copy.deepcopy(model)))
    token = {"input_ids": torch.tensor([[5], [6]])}
    with tp.apply(model, fastv()):
        cache = cache_for(model, inputs, 8)
        steps(model, inputs, cache)
        step(**token, **{CACHE: cache})
        with pytest.raises(UnsupportedFeatureError, match="outside a call of the model that apply was given"):
            other(**token, **{CACHE: cache})
    for call in (model, step):
        with pytest.raises(UnsupportedFeatureError, match="pruned inside an apply block that has ended"):
            call(**token, **{CACHE: cache})
    with tp.apply(model, fastv()):
        model(**inputs)
        for call in (model, step):
            with pytest.raises(UnsupportedFeatureError, match="pruned by another apply block"):
                call(**token, **{CACHE: cache})


@torch.no_grad()
def test_reset_gives_the_room_back() -> None:
    model, inputs = shallow()
    cache = StaticCache(config=model.config.get_text_config(), max_cache_len=128 + KEPT)
    full = [layer.max_cache_len for layer in cache.layers]
    with tp.apply(model, fastv()):
        first = steps(model, inputs, cache)
        assert isinstance(cache.layers[1], PrunedStaticLayer)
        assert cache.layers[1].max_cache_len < full[1]
        cache.reset()
        assert torch.equal(steps(model, inputs, cache), first)
        cache.reset()
    assert [layer.max_cache_len for layer in cache.layers] == full
    assert difference(steps(model, inputs, cache), steps(model, inputs, dynamic(model))) <= 1e-5


@torch.no_grad()
def test_a_copy_goes_on_by_itself() -> None:
    model, inputs = shallow()
    with tp.apply(model, fastv()):
        cache = cache_for(model, inputs, 8)
        model(**inputs, **{CACHE: cache})
        other = copy.deepcopy(cache)
        token = {"input_ids": torch.tensor([[5], [6]])}
        one = model(**token, **{CACHE: cache}).logits
        model(**token, **{CACHE: cache})
        assert torch.equal(model(**token, **{CACHE: other}).logits, one)


@pytest.mark.parametrize("layer", [0, 1])
@torch.no_grad()
def test_a_full_cache_is_an_error(layer: int) -> None:
    """Room is rounded up, but not used: positions of dropped tokens count, as in the unpruned cache."""
    model, inputs = shallow()
    with tp.apply(model, matrix.method([layer], matrix.budget_of("image"))), pytest.raises(IndexError):
        steps(model, inputs, cache_for(model, inputs, 2))


@torch.no_grad()
def test_a_prompt_that_is_longer_than_the_cache_is_an_error() -> None:
    """Though what is left of it would find room."""
    model, inputs = shallow()
    refused = pytest.raises(UnsupportedFeatureError, match=r"room for 26 tokens, and the prompt has 27 before")
    with tp.apply(model, matrix.method([0], matrix.budget_of("image"))), refused:
        model(**inputs, **{CACHE: cache_for(model, inputs, -1)})


@torch.no_grad()
def test_an_interrupted_prefill_is_refused_and_a_reset_mends_it() -> None:
    model, inputs = shallow()
    cache = cache_for(model, inputs, 80)

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with tp.apply(model, fastv()):
        hook = model.get_decoder().layers[1].mlp.register_forward_pre_hook(stop)
        with pytest.raises(KeyboardInterrupt):
            model(**inputs, **{CACHE: cache})
        hook.remove()
        with pytest.raises(UnsupportedFeatureError, match="a forward was interrupted"):
            model(input_ids=torch.tensor([[5], [6]]), **{CACHE: cache})
        cache.reset()
        expected = steps(model, inputs, dynamic(model))
        assert difference(steps(model, inputs, cache), expected) <= 1e-5


@torch.no_grad()
def test_flash_attention_and_offloading_are_refused_by_name() -> None:
    model, inputs = pair()
    offloaded = cache_for(model, inputs)
    offloaded.offloading = True
    with tp.apply(model, fastv()), pytest.raises(UnsupportedFeatureError, match="an offloaded cache"):
        model(**inputs, **{CACHE: offloaded})
    model.config.get_text_config()._attn_implementation = "flash_attention_2"
    with tp.apply(model, fastv()), pytest.raises(UnsupportedFeatureError, match="StaticCache with flash_attention_2"):
        model(**inputs, **{CACHE: cache_for(model, inputs)})


@torch.no_grad()
def test_blocks_one_after_the_other_do_not_use_up_the_graphs_that_dynamo_keeps() -> None:
    model, inputs = shallow()
    limit = torch._dynamo.config.recompile_limit
    for number in range(1, limit + 3):
        with tp.apply(model, fastv()):
            generate(model, inputs, new=2, **compiled())
        assert graphs() == number


@pytest.mark.parametrize("where", ["prefill", "step"])
@torch.no_grad()
def test_an_interrupted_call_does_not_go_on_in_a_graph(where: str) -> None:
    """The layers differ in length: an eager step compares them, and a graph does not."""
    model, inputs = shallow()
    called = torch.compile(model.__call__, backend=BACKEND)
    token = {"input_ids": torch.tensor([[5], [6]])}

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with tp.apply(model, fastv()):
        cache = cache_for(model, inputs, 8)
        if where == "prefill":
            text: Any = model.config.get_text_config()
            heads, size = text.num_key_value_heads, text.hidden_size // text.num_attention_heads
            cache.early_initialization(2, heads, size, torch.float32, torch.device("cpu"))
        else:
            model(**inputs, **{CACHE: cache})
            called(**token, **{CACHE: cache})
        hook = model.get_decoder().layers[1].self_attn.register_forward_pre_hook(stop)
        with pytest.raises(KeyboardInterrupt):
            model(**(inputs if where == "prefill" else token), **{CACHE: cache})
        hook.remove()
        with pytest.raises(UnsupportedFeatureError, match="a forward was interrupted"):
            called(**token, **{CACHE: cache})


@torch.no_grad()
def test_a_using_block_in_which_only_a_graph_runs() -> None:
    model, inputs = shallow()
    called = torch.compile(model.__call__, backend=BACKEND)
    with tp.apply(model, fastv()) as run:
        cache = cache_for(model, inputs, 8)
        model(**inputs, **{CACHE: cache})
        with run.using(fastv(name="keep_count", tokens=3)):
            called(input_ids=torch.tensor([[5], [6]]), **{CACHE: cache})


class Step(torch.nn.Module):
    """A decode step on a cache that it holds, which is what can be exported."""

    def __init__(self, model: PreTrainedModel, cache: Any) -> None:
        super().__init__()
        self.model, self.cache = model, cache

    def forward(self, token: Tensor) -> Tensor:
        logits: Tensor = self.model(input_ids=token, **{CACHE: self.cache}).logits
        return logits


@torch.no_grad()
def test_an_export_of_a_step_is_refused() -> None:
    model, inputs = shallow()
    with tp.apply(model, fastv()):
        cache = cache_for(model, inputs, 8)
        model(**inputs, **{CACHE: cache})
        with pytest.raises(UnsupportedFeatureError, match="exported or traced"):
            torch.export.export(Step(model, cache), (torch.tensor([[5], [6]]),), strict=False)


@torch.no_grad()
def test_renumbered_layers_with_a_wide_window_are_one_graph() -> None:
    case, model = CASES["gemma3"], wide_gemma(100)
    inputs = case.batch(model, 2, "left", variant="image").inputs
    with tp.apply(model, matrix.method([1], matrix.budget_of("image"), positions="renumbered")) as run:
        run.annotate(sample_ids=[0, 1])
        expected = generate(model, inputs)
        run.annotate(sample_ids=[0, 1])
        out = generate(model, inputs, **compiled())
    assert not counters["graph_break"]
    assert difference(torch.stack(out.logits, 1), torch.stack(expected.logits, 1)) <= 1e-4
