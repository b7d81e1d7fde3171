"""The eleven promises of the engine, one section each, and what it refuses."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Annotated, Any

import pytest
import torch
from pydantic import AllowInfNan
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, StaticCache
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import tokenprune as tp
from tests.support.oracle import dropped, oracle_generate_logits, oracle_logits, tolerance
from tests.support.tiny import CASES
from tests.support.tiny.core import CACHE
from tokenprune.errors import (
    BudgetError,
    BusyModelError,
    ConfigError,
    LayerError,
    ScoreError,
    UnsupportedFeatureError,
    UnsupportedModelError,
)
from tokenprune.pruners.base import Pruner, Selection
from tokenprune.scorers.base import Scorer
from tokenprune.signals.context import PruneContext

LLAVA = CASES["llava"]


class Constant(Scorer):
    """Fills every score with one value: NaN, infinity, or ties."""

    value: Annotated[float, AllowInfNan(True)]

    @property
    def needs(self) -> frozenset[str]:
        return frozenset()

    def score(self, ctx: PruneContext) -> Tensor:
        scores = torch.zeros(ctx.visual_mask.shape)
        scores[-1] = self.value
        return scores


class MergeRest(Pruner):
    """Keeps the first tokens of each image and adds the mean of the dropped ones to each (a toy merge)."""

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"hidden"})

    def select(self, ctx: PruneContext) -> Selection:
        rank = torch.arange(ctx.visual_mask.shape[1]).expand_as(ctx.visual_mask)
        keep = (rank < ctx.quotas.sum(1, keepdim=True)) & ctx.visual_mask
        rest = ctx.visual_mask & ~keep
        mean = (ctx.hidden * rest[:, :, None]).sum(1, keepdim=True) / rest.sum(1)[:, None, None]
        return Selection(keep, ctx.hidden + mean)


class WrongCount(MergeRest):
    """Keeps everything whatever the quota."""

    def select(self, ctx: PruneContext) -> Selection:
        return Selection(ctx.visual_mask)


def method(layers: list[int] | None = None, scorer: Any = "random", **budget: Any) -> tp.Method:
    budget = budget or {"name": "keep_count", "tokens": 5}
    return tp.Method(
        layers={"name": "fixed", "layers": layers or [1]},
        pruner=scorer if isinstance(scorer, Pruner) else {"name": "topk", "scorer": scorer},
        budget=budget,
    )


@pytest.fixture
def model() -> PreTrainedModel:
    return LLAVA.build()


@pytest.fixture
def inputs(model: PreTrainedModel) -> dict[str, Tensor]:
    return LLAVA.batch(model, 2, "left", seed=3).inputs


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


def footprint(model: PreTrainedModel) -> list[tuple[str, list[str], int]]:
    """Everything an engine could leave on a model: attributes and hooks of every module."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called")
    return [
        (name, sorted(module.__dict__), sum(len(getattr(module, kind)) for kind in hooks))
        for name, module in model.named_modules()
    ]


# 1 and 2: text stays, order and positions stay


@pytest.mark.parametrize("layers", [[0], [1], [1, 2], [0, 2, 3]])
def test_1_text_tokens_are_never_dropped(model: PreTrainedModel, inputs: dict[str, Tensor], layers: list[int]) -> None:
    with tp.apply(model, method(layers)) as run:
        model(**inputs)
    text = inputs["input_ids"] != 150
    for stage in run.stages:
        for sample in range(2):
            rows = stage.rows[sample][stage.rows[sample] >= 0]
            assert torch.isin(text[sample].nonzero()[:, 0], rows).all()
            assert len(rows) == text[sample].sum() + stage.after[sample]


def test_2_order_and_positions_are_kept(model: PreTrainedModel, inputs: dict[str, Tensor]) -> None:
    seen: dict[int, Tensor] = {}

    def look(layer: int) -> Any:
        return lambda module, args, kwargs: None if layer in seen else seen.update({layer: kwargs["position_ids"]})

    with tp.apply(model, method([1])) as run:
        # hooks put on inside the block come after the engine's: they see what the layers get
        for index, layer in enumerate(model.get_decoder().layers):
            layer.register_forward_pre_hook(look(index), with_kwargs=True)
        out = model.generate(**inputs, max_new_tokens=3, return_dict_in_generate=True)
    for layer in (1, 2, 3):
        for sample in range(2):
            assert torch.equal(seen[layer][sample], seen[0][sample, run.stages[0].rows[sample]])
    rows = run.stages[0].rows
    assert (rows.diff(dim=1)[rows[:, :-1] >= 0] > 0).all()
    assert out[CACHE].get_seq_length() == inputs["input_ids"].shape[1] + 2
    assert out[CACHE].layers[1].keys.shape[-2] == rows.shape[1] + 2


def test_2_decoding_by_hand_goes_on_at_the_unpruned_position(model: PreTrainedModel) -> None:
    """Without position_ids a model counts positions by its cache, even when layer 0 was pruned."""
    inputs = LLAVA.batch(model, 2, "none", seed=3).inputs
    with tp.apply(model, method([0])) as run:
        out = model(**inputs)
        steps, token = [], out.logits[:, -1:].argmax(-1)
        tokens = [token]
        for _ in range(3):
            out = model(input_ids=token, **{CACHE: out[CACHE]})
            steps.append(out.logits[:, -1])
            token = out.logits[:, -1:].argmax(-1)
            tokens.append(token)
    kept = [(0, run.stages[0].kept)]
    expected = oracle_generate_logits(model, inputs, torch.cat(tokens, 1), kept, LLAVA.visual_ids)
    assert (torch.stack(steps, 1) - expected[:, 1:]).abs().max() <= tolerance(expected)


# 3: counts


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        ({"name": "keep_count", "tokens": 7}, 7),
        ({"name": "keep_ratio", "ratio": 0.5}, 8),
        ({"name": "layer_average", "tokens": 10}, 8),  # L=4, K=1: floor((4*10 - 16) / 3)
    ],
)
def test_3_the_kept_count_is_the_budgets(
    model: PreTrainedModel, inputs: dict[str, Tensor], budget: dict[str, Any], expected: int
) -> None:
    with tp.apply(model, method(**budget)) as run:
        model(**inputs)
    assert run.stages[0].after == [expected, expected]
    assert (run.stages[0].kept >= 0).sum(1).tolist() == [expected, expected]


def test_3_every_image_keeps_its_share(model: PreTrainedModel) -> None:
    batch = LLAVA.batch(model, 2, "none", variant="ragged")
    with tp.apply(model, method(name="keep_ratio", ratio=0.3)) as run:
        model(**batch.inputs)
    for sample, sizes in enumerate(batch.groups):
        places = (batch.inputs["input_ids"][sample] == 150).nonzero()[:, 0].split(sizes)
        shares = [int(torch.isin(place, run.stages[0].kept[sample]).sum()) for place in places]
        assert sum(shares) == int(sum(sizes) * 0.3 + 1e-9)
        assert max(shares) - min(shares) <= 1  # images of LLaVA are of one size
        assert min(shares) >= 1


def test_3_fewer_tokens_than_images_is_an_error(model: PreTrainedModel) -> None:
    batch = LLAVA.batch(model, 2, "none", variant="multi")
    with (
        pytest.raises(BudgetError, match=r"1 visual tokens for 2 images"),
        tp.apply(model, method(tokens=1, name="keep_count")),
    ):
        model(**batch.inputs)


# 4: nothing to prune


def test_4_no_visual_tokens_is_bitwise_the_unpruned_model(model: PreTrainedModel) -> None:
    inputs = LLAVA.batch(model, 2, "left", variant="text").inputs
    expected = model(**inputs).logits
    with tp.apply(model, method()) as run:
        ours = model(**inputs).logits
    assert torch.equal(ours, expected)
    assert run.report.reason == "not pruned: the prompt holds no visual tokens"


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "qwen3_vl", "gemma3", "paligemma"])
def test_4_no_reduction_is_bitwise_the_unpruned_model(name: str, attention: str) -> None:
    case = CASES[name]
    model = case.build(attention)
    inputs = case.batch(model, 2, "left").inputs
    options = {"max_new_tokens": 4, "output_logits": True, "return_dict_in_generate": True}
    expected = torch.stack(model.generate(**inputs, **options).logits)
    with tp.apply(model, method(name="keep_ratio", ratio=1.0)) as run:
        ours = torch.stack(model.generate(**inputs, **options).logits)
    assert torch.equal(ours, expected)
    assert run.report.reason == "not pruned: the budget is no reduction"


# 5 to 7: no trace


def test_5_no_trace_is_left(model: PreTrainedModel, inputs: dict[str, Tensor]) -> None:
    expected = model(**inputs).logits
    before = footprint(model)
    for how in (method([1]), method([0, 2]), method([2], "fastv"), method([2], "matrix_entropy")):
        with tp.apply(model, how):
            assert footprint(model) != before  # the footprint sees what the engine does
            model.generate(**inputs, max_new_tokens=3)
        assert footprint(model) == before
        assert torch.equal(model(**inputs).logits, expected)


def test_6_two_at_once_is_an_error(model: PreTrainedModel, inputs: dict[str, Tensor]) -> None:
    with tp.apply(model, method()):
        with pytest.raises(BusyModelError, match="already applied"), tp.apply(model, method()):
            pass
        with pytest.raises(BusyModelError, match="already applied"), tp.apply(model.model, method()):
            pass
        model(**inputs)
    with tp.apply(model, method()):
        model(**inputs)


def test_7_exceptions_leave_the_model_clean(model: PreTrainedModel, inputs: dict[str, Tensor]) -> None:
    model(**inputs)  # transformers itself notes things on a model's first call
    before = footprint(model)
    with pytest.raises(ZeroDivisionError), tp.apply(model, method()):
        raise ZeroDivisionError
    assert footprint(model) == before
    with pytest.raises(ScoreError), tp.apply(model, method(scorer=Constant(value=float("nan")))):
        model(**inputs)
    assert footprint(model) == before
    with pytest.raises(LayerError), tp.apply(model, method([99])):
        pass
    assert footprint(model) == before


def test_7_after_an_error_inside_a_forward_the_block_goes_on(model: PreTrainedModel, inputs: dict[str, Tensor]) -> None:
    with tp.apply(model, method([2], "annotation")) as run:
        with pytest.raises(ScoreError, match="was not given"):
            model(**inputs)
        run.annotate(foreground=[range(16), range(16)])
        model(**inputs)
    # the highest foreground values are the last five tokens
    assert torch.equal(run.stages[0].kept[0], (inputs["input_ids"][0] == 150).nonzero()[-5:, 0])


# 8: scores


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_8_a_bad_score_names_scorer_layer_and_sample(
    model: PreTrainedModel, inputs: dict[str, Tensor], value: float
) -> None:
    with (
        pytest.raises(ScoreError, match=r"Constant .* layer 2, sample 1"),
        tp.apply(model, method([2], Constant(value=value))),
    ):
        model(**inputs)


def test_8_a_pruner_that_keeps_the_wrong_number_is_an_error(model: PreTrainedModel, inputs: dict[str, Tensor]) -> None:
    with (
        pytest.raises(ScoreError, match=r"WrongCount kept \[\[16\], \[16\]\]"),
        tp.apply(model, method([1], WrongCount())),
    ):
        model(**inputs)


def test_ties_keep_the_earlier_positions(model: PreTrainedModel, inputs: dict[str, Tensor]) -> None:
    with tp.apply(model, method([1], Constant(value=0.0))) as run:
        model(**inputs)
    for sample in range(2):
        assert torch.equal(run.stages[0].kept[sample], (inputs["input_ids"][sample] == 150).nonzero()[:5, 0])


# 9: conversations


@pytest.mark.parametrize("layers", [[0], [1], [1, 3]])
def test_9_a_further_turn_of_text_is_exact(
    model: PreTrainedModel, inputs: dict[str, Tensor], layers: list[int]
) -> None:
    more = torch.randint(3, 100, (2, 4), generator=torch.Generator().manual_seed(0))
    with tp.apply(model, method(layers, name="keep_ratio", ratio=0.4)) as run:
        first = model.generate(**inputs, max_new_tokens=3, return_dict_in_generate=True)
        ids = torch.cat([first.sequences, more], 1)
        mask = torch.cat([inputs["attention_mask"], torch.ones(2, 7, dtype=torch.long)], 1)
        second = model.generate(
            input_ids=ids,
            attention_mask=mask,
            **{CACHE: first[CACHE]},
            max_new_tokens=3,
            output_logits=True,
            return_dict_in_generate=True,
        )
        stages = [(stage.layer, stage.kept) for stage in run.stages]
    tail = second.sequences[:, inputs["input_ids"].shape[1] :]
    expected = oracle_generate_logits(model, inputs, tail, stages, LLAVA.visual_ids)[:, -3:]
    assert (torch.stack(second.logits, 1) - expected).abs().max() <= tolerance(expected)


@torch.no_grad()
def test_9_an_image_in_a_later_turn_is_exact(model: PreTrainedModel) -> None:
    """Ids of the whole conversation, pixels of the new turn. All other ways are in `test_turns.py`."""
    first = LLAVA.batch(model, 2, "left", seed=1).inputs
    second = LLAVA.batch(model, 2, "left", seed=2).inputs
    more = {"max_new_tokens": 4, "output_logits": True, "return_dict_in_generate": True}
    with tp.apply(model, method(name="keep_count", tokens=5)) as run:
        told = model.generate(**first, **more)
        start = told.sequences.shape[1] - 1  # the last token is not in the cache
        kept = [run.stages[0].kept]
        ids = torch.cat([told.sequences, second["input_ids"]], 1)
        mask = torch.cat([first["attention_mask"], torch.ones(2, 4, dtype=torch.long), second["attention_mask"]], 1)
        asked = {"input_ids": ids, "attention_mask": mask, "pixel_values": second["pixel_values"]}
        out = model.generate(**asked, **{CACHE: told[CACHE]}, **more)
        kept.append(run.stages[0].kept + start)
    pixels = torch.stack([first["pixel_values"], second["pixel_values"]], 1).flatten(0, 1)
    whole = {**asked, "pixel_values": pixels}
    stages = [(1, torch.cat(kept, 1))]
    wanted = oracle_generate_logits(model, whole, out.sequences[:, -4:], stages, LLAVA.visual_ids)
    assert (torch.stack(out.logits, 1) - wanted).abs().max() <= tolerance(wanted)


def test_9_a_cache_of_another_block_is_refused(model: PreTrainedModel, inputs: dict[str, Tensor]) -> None:
    with tp.apply(model, method()):
        cache = model(**inputs)[CACHE]
    token = torch.full((2, 1), 5)
    with tp.apply(model, method()), pytest.raises(UnsupportedFeatureError, match="another apply block"):
        model(input_ids=token, **{CACHE: cache})


def test_9_two_conversations_may_alternate(model: PreTrainedModel) -> None:
    """Each cache carries its own rows: two prompts of other lengths do not mix."""
    one = LLAVA.batch(model, 2, "none", seed=1, variant="ragged").inputs
    two = LLAVA.batch(model, 2, "none", seed=2).inputs
    token = torch.full((2, 1), 7)
    with tp.apply(model, method(name="keep_ratio", ratio=0.4)) as run:
        run.annotate(sample_ids=[0, 1])
        alone = model(input_ids=token, **{CACHE: model(**one)[CACHE]}).logits
        first = model(**one)[CACHE]
        copied = copy.deepcopy(first)
        model(**two)
        assert torch.equal(model(input_ids=token, **{CACHE: first}).logits, alone)
        assert torch.equal(model(input_ids=token, **{CACHE: copied}).logits, alone)


# 10: refused by name


def test_10_an_offloaded_cache_is_refused(model: PreTrainedModel, inputs: dict[str, Tensor]) -> None:
    for kind in (DynamicCache, StaticCache):
        cache: Any = kind(config=model.config.text_config, **({"max_cache_len": 64} if kind is StaticCache else {}))
        cache.offloading = True
        with tp.apply(model, method()), pytest.raises(UnsupportedFeatureError, match="an offloaded cache"):
            model(**inputs, **{CACHE: cache})


def test_10_flex_attention_is_refused(model: PreTrainedModel) -> None:
    model.get_decoder().config._attn_implementation = "flex_attention"
    with pytest.raises(UnsupportedFeatureError, match="flex_attention"), tp.apply(model, method()):
        pass


def test_10_a_loss_that_knows_no_rows_is_refused(model: PreTrainedModel, inputs: dict[str, Tensor]) -> None:
    model.loss_function = lambda logits, labels, **more: logits.sum()
    with tp.apply(model, method()), pytest.raises(UnsupportedFeatureError, match="labels"):
        model(**inputs, labels=inputs["input_ids"])


def test_10_embeddings_with_features_already_in_place_are_not_guessed(model: PreTrainedModel) -> None:
    with tp.apply(model, method()), pytest.raises(UnsupportedFeatureError, match=r"8 rows .* are no text"):
        model(inputs_embeds=torch.randn(1, 8, model.config.text_config.hidden_size))


def test_10_bad_layers_are_refused_up_front(model: PreTrainedModel) -> None:
    with pytest.raises(LayerError, match="layer 4 is out of range: the model has 4"), tp.apply(model, method([4])):
        pass
    with pytest.raises(LayerError, match="before layer 0"), tp.apply(model, method([0], "matrix_entropy")):
        pass


def test_10_what_is_no_model_is_refused() -> None:
    with (
        pytest.raises(UnsupportedModelError, match="not a transformers model"),
        tp.apply(torch.nn.Linear(2, 2), method()),
    ):
        pass
    with pytest.raises(ConfigError, match="needs a Method"), tp.apply(LLAVA.build(), "fastv"):  # type: ignore[arg-type]
        pass


# beyond the ten


@pytest.mark.parametrize("padding", ["none", "left", "right"])
@pytest.mark.parametrize("variant", ["image", "ragged"])
def test_several_stages_are_exact(variant: Any, padding: Any) -> None:
    model = LLAVA.build()
    inputs = LLAVA.batch(model, 3, padding, variant=variant).inputs
    with tp.apply(model, method([0, 1, 3], name="keep_ratio", ratio=0.2)) as run:
        ours = model(**inputs).logits
    stages = [(stage.layer, stage.kept) for stage in run.stages]
    counts = [stage.after for stage in run.stages]
    assert all(a > b > c for a, b, c in zip(*counts, strict=True))
    full = oracle_logits(model, inputs, stages, LLAVA.visual_ids)
    gone = dropped(inputs, stages, LLAVA.visual_ids, layer=9)
    for sample in range(3):
        rows = (~gone[sample]).nonzero()[:, 0]
        real = inputs["attention_mask"][sample, rows].bool()
        worst = (ours[sample, -len(rows) :][real] - full[sample, rows[real]]).abs().max()
        assert worst <= tolerance(full)


@pytest.mark.parametrize("layer", [0, 2])
def test_merged_hidden_states_go_on(layer: int) -> None:
    """A pruner may replace the kept rows: checked against the full run in which a hook writes the same values."""
    model = LLAVA.build()
    inputs = LLAVA.batch(model, 2, "left", seed=3).inputs
    with tp.apply(model, method([layer], MergeRest())) as run:
        ours = model(**inputs).logits

    def write(module: Any, args: Any, kwargs: Any) -> Any:
        hidden = (args[0] if args else kwargs.pop("hidden_states")).clone()
        for sample in range(2):
            places = (inputs["input_ids"][sample] == 150).nonzero()[:, 0]
            hidden[sample, places[:5]] += hidden[sample, places[5:]].mean(0)
        return (hidden,), kwargs

    hook = model.get_decoder().layers[layer].register_forward_pre_hook(write, with_kwargs=True)
    stages = [(layer, run.stages[0].kept)]
    full = oracle_logits(model, inputs, stages, LLAVA.visual_ids)
    hook.remove()
    for sample in range(2):
        text = (inputs["input_ids"][sample] != 150) & inputs["attention_mask"][sample].bool()
        after = text.nonzero()[:, 0]
        after = after[after > (inputs["input_ids"][sample] == 150).nonzero().max()]
        worst = (ours[sample, -len(after) :] - full[sample, after]).abs().max()
        assert worst <= tolerance(full)


def flash_like(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> Any:
    """Attention with flash attention's interface: a 2-D mask, causal aligned to the last row, no position_ids."""
    position_ids = kwargs.get("position_ids")
    if position_ids is not None and position_ids.shape[-1] > 1 and query.shape[0] == 1:
        start = position_ids.min() + torch.arange(position_ids.shape[-1])
        assert torch.equal(position_ids[0], start), "flash attention would take this for packed sequences"
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    new, keys = query.shape[2], key.shape[2]
    allowed = torch.ones(new, keys, dtype=torch.bool).tril(keys - new)[None, None]
    if attention_mask is not None:
        assert attention_mask.shape == (query.shape[0], keys)
        allowed = allowed & attention_mask.bool()[:, None, None, :]
        rows = torch.eye(keys, dtype=torch.bool)[-new:]
        allowed = allowed | (rows & ~attention_mask.bool()[:, None, -new:, None])
    out = torch.nn.functional.scaled_dot_product_attention(query, key, value, allowed, scale=kwargs.get("scaling"))
    return out.transpose(1, 2), None


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("variant", ["image", "ragged"])
@pytest.mark.parametrize("padding", ["none", "left"])
def test_two_dimensional_masks_are_exact(padding: Any, variant: Any, batch: int) -> None:
    """Flash attention needs a GPU; its interface does not: the same masks through an attention that wants them."""
    name = "flash_attention_like"
    ALL_ATTENTION_FUNCTIONS.register(name, flash_like)
    ALL_MASK_ATTENTION_FUNCTIONS.register(name, ALL_MASK_ATTENTION_FUNCTIONS["flash_attention_2"])
    model = LLAVA.build()
    inputs = LLAVA.batch(model, batch, padding, variant=variant).inputs
    model.get_decoder().config._attn_implementation = name
    with tp.apply(model, method([1], name="keep_ratio", ratio=0.4)) as run:
        out = model.generate(**inputs, max_new_tokens=4, output_logits=True, return_dict_in_generate=True)
    model.get_decoder().config._attn_implementation = "sdpa"
    generated = out.sequences[:, -4:]
    stages = [(stage.layer, stage.kept) for stage in run.stages]
    expected = oracle_generate_logits(model, inputs, generated, stages, LLAVA.visual_ids)
    assert (torch.stack(out.logits, 1) - expected).abs().max() <= tolerance(expected)


# 11: no result depends on who shares the batch


@pytest.mark.parametrize("positions", ["original", "renumbered"])
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "qwen3_vl"])
def test_11_a_sample_gets_in_a_batch_what_it_gets_alone(name: str, positions: str) -> None:
    """The first sample loses nothing; the methods themselves are in tests/methods/test_batches.py."""
    case, model = CASES[name], CASES[name].build()
    batch, alone = case.mixed(model, [[("image", 1)], [("image", 0)] * 2, []], seed=4)
    count = sum(alone[0].groups[0])
    how = method([1], name="keep_count", tokens=count).model_copy(update={"positions": positions})
    with tp.apply(model, how) as run:
        run.annotate(sample_ids=[0, 1, 2])
        together = model(**batch.inputs).logits[:, -1]
        assert run.report.after == [count, count, 0]
        for number, sample in enumerate(alone):
            run.annotate(sample_ids=[number])
            own = model(**sample.inputs).logits[:, -1]
            assert (together[number] - own).abs().max() <= tolerance(own)


def test_11_a_budget_in_flops_is_that_of_the_sample_alone(model: PreTrainedModel) -> None:
    """Padding is computed, too, but it comes from the neighbours."""
    batch, alone = LLAVA.mixed(model, [[("image", 0)], [("image", 0)] * 4])
    how = method([1], name="flops_reduction", percent=20, scope="decoder")
    with tp.apply(model, how) as run:
        model(**batch.inputs)
        together = run.report.after
        own = []
        for sample in alone:
            model(**sample.inputs)
            own += run.report.after
    assert together == own


def test_random_scores_do_not_depend_on_the_batch(model: PreTrainedModel) -> None:
    inputs = LLAVA.batch(model, 3, "none", seed=5).inputs
    with tp.apply(model, method()) as run:
        run.annotate(sample_ids=[10, 11, 12])
        model(**inputs)
        together = run.stages[0].kept
        run.annotate(sample_ids=[12])
        model(**{name: value[2:] for name, value in inputs.items()})
    visual = (inputs["input_ids"][2] == 150).nonzero()[0, 0]
    assert torch.equal(together[2], run.stages[0].kept[0])
    assert not torch.equal(together[0] - together[0].min(), together[2] - visual)


@pytest.mark.parametrize("scorer", ["random", "fastv", "matrix_entropy"])
def test_without_a_cache_generation_is_the_same(model: PreTrainedModel, inputs: dict[str, Tensor], scorer: str) -> None:
    """Each step of generation without a cache is a new prefill, which must drop the same tokens."""
    with tp.apply(model, method([2], scorer)):
        cached = model.generate(**inputs, max_new_tokens=5, output_logits=True, return_dict_in_generate=True)
    with tp.apply(model, method([2], scorer)):
        bare = model.generate(
            **inputs, max_new_tokens=5, output_logits=True, return_dict_in_generate=True, use_cache=False
        )
    assert torch.equal(cached.sequences, bare.sequences)
    ours = torch.stack(bare.logits)
    assert (torch.stack(cached.logits) - ours).abs().max() <= tolerance(ours)


def test_the_report_counts_what_the_cache_holds(model: PreTrainedModel) -> None:
    inputs = LLAVA.batch(model, 2, "none", seed=3).inputs
    whole = model(**inputs)[CACHE]
    size = sum(layer.keys.nbytes + layer.values.nbytes for layer in whole.layers)
    with tp.apply(model, method([1])) as run:
        cut = model(**inputs)[CACHE]
    assert run.report.kv_bytes_unpruned == size
    assert run.report.kv_bytes == sum(layer.keys.nbytes + layer.values.nbytes for layer in cut.layers)
    assert run.report.layer_average() == (16 + 3 * 5) / 4
    assert "visual tokens [16, 16] -> [5, 5]" in str(run.report)


def test_observe_shows_the_input_of_every_layer(model: PreTrainedModel) -> None:
    batch = LLAVA.batch(model, 2, "left", variant="ragged")
    seen: dict[int, tuple[Tensor, Tensor]] = {}
    tp.observe(model, batch.inputs, lambda layer, hidden, mask: seen.update({layer: (hidden, mask)}))
    states = model(**batch.inputs, output_hidden_states=True).hidden_states
    assert sorted(seen) == [0, 1, 2, 3]
    for layer, (hidden, mask) in seen.items():
        for sample, sizes in enumerate(batch.groups):
            places = batch.inputs["input_ids"][sample] == 150
            assert mask[sample].sum() == sum(sizes)
            assert mask[sample, : sum(sizes)].all()
            assert torch.equal(hidden[sample, : sum(sizes)], states[layer][sample, places])
