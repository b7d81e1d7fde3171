"""The engine against the oracle where batches are odd, and where users call models in less usual ways."""

from __future__ import annotations

import copy
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

import tokenprune as tp
from tests.support.looking import looking
from tests.support.matrix import STEPS, Cell, difference, generate, judge_forward, method, model_of, stages_of
from tests.support.oracle import dropped, kept_rows, masked, oracle_generate_logits, oracle_logits, tolerance
from tests.support.tiny import CASES, CORE, TinyCase
from tests.support.tiny.core import CACHE, TRANSFORMERS, Batch, pad, prompts
from tokenprune.pruners.base import Pruner, Selection
from tokenprune.pruners.topk import TopK
from tokenprune.scorers.base import Scorer
from tokenprune.signals.context import PruneContext

torch.set_num_threads(1)
RATIO = {"name": "keep_ratio", "ratio": 0.4}
COUNT = {"name": "keep_count", "tokens": 5}
LLAVA = CASES["llava"]


class LikeLastToken(Scorer):
    """Depends on the image and on the question."""

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"hidden", "text"})

    def score(self, ctx: PruneContext) -> Tensor:
        dim = ctx.hidden_rows.shape[-1]
        last = ctx.hidden_rows.gather(1, ctx.last_row[:, None, None].expand(-1, 1, dim))
        return (ctx.hidden * last).sum(-1)


def batch_of(case: TinyCase, model: PreTrainedModel, plan: list[list[tuple[str, int]]], gap: bool = True) -> Batch:
    """A left-padded batch with the planned visuals of each sample; without a gap, images stand side by side."""
    noise = torch.Generator().manual_seed(11)
    samples = [[case.make_visual(model, *what, noise) for what in sample] for sample in plan]
    rows = prompts(samples, "left", case.first or not gap, noise)
    inputs = case.finish(model, {**pad(rows, "left"), **case.join(samples)})
    return Batch(inputs, [[g for v in sample for g in v.groups] for sample in samples])


@torch.no_grad()
def check_generate(
    case: TinyCase, model: PreTrainedModel, inputs: dict[str, Tensor], budget: dict[str, Any], **more: Any
) -> Any:
    """Generate under the engine, compare every step with the oracle; returns the run."""
    with tp.apply(model, method([1], budget)) as run:
        out = generate(model, inputs, **more)
    generated = out.sequences[:, -STEPS:]
    expected = oracle_generate_logits(model, inputs, generated, stages_of(run), case.visual_ids, case.appended)
    assert difference(torch.stack(out.logits, 1), expected) <= tolerance(expected)
    return run


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", CORE)
def test_a_sample_without_images(name: str, attention: str) -> None:
    """Text-only samples in a batch with images stay whole."""
    case, model = CASES[name], model_of(name, attention)
    batch = batch_of(case, model, [[("image", 0)], [], [("image", 0), ("image", 1)]])
    run = check_generate(case, model, batch.inputs, RATIO)
    assert run.stages[0].after[1] == 0


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", [name for name in CORE if "video" in CASES[name].variants])
def test_images_and_videos_together(name: str, attention: str) -> None:
    """A sample with an image and a video, one with a video, one with an image."""
    case, model = CASES[name], model_of(name, attention)
    batch = batch_of(case, model, [[("image", 0), ("video", 0)], [("video", 0)], [("image", 1)]])
    run = check_generate(case, model, batch.inputs, RATIO)
    assert list(run.stages[0].before) == [sum(sizes) for sizes in batch.groups]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", CORE)
def test_one_sample_and_right_padding(name: str, attention: str) -> None:
    """A batch of one; and right padding, which a plain forward allows."""
    case, model = CASES[name], model_of(name, attention)
    check_generate(case, model, case.batch(model, 1, variant="ragged").inputs, RATIO)
    inputs = case.batch(model, 3, "right", variant="ragged").inputs
    judged = judge_forward(Cell(name, attention), case, model, inputs, method([1], RATIO))
    assert judged.worst <= judged.allowed


@pytest.mark.parametrize("name", ["llava", "llava_next", "paligemma", "video_llava", "llava_onevision"])
@torch.no_grad()
def test_images_side_by_side_are_two(name: str) -> None:
    """Two images without a token between them keep a share each, for they are two."""
    case, model = CASES[name], model_of(name, "sdpa")
    batch = batch_of(case, model, [[("image", 0), ("image", 0)], [("image", 0)]], gap=False)
    with tp.apply(model, method([1], RATIO)) as run:
        model(**batch.inputs)
    places = torch.isin(batch.inputs["input_ids"][0], torch.tensor(case.visual_ids)).nonzero()[:, 0]
    one, two = (int(torch.isin(place, run.stages[0].kept[0]).sum()) for place in places.split(batch.groups[0]))
    assert abs(one - two) <= 1


@pytest.mark.parametrize("padding", ["none", "left"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@torch.no_grad()
def test_paligemma_without_token_types(attention: str, padding: Any) -> None:
    """Without types sdpa gets no mask and sees both ways, eager gets a causal one: both as the model does it."""
    case, model = CASES["paligemma"], model_of("paligemma", attention)
    for variant in ("image", "ragged"):
        typed = case.batch(model, 3, padding, variant=variant).inputs  # type: ignore[arg-type]
        inputs = {k: v for k, v in typed.items() if k != "token_type_ids"}
        judged = judge_forward(Cell("paligemma", attention), case, model, inputs, method([1], RATIO))
        assert judged.worst <= judged.allowed
        with tp.apply(model, method([1], RATIO)) as run:
            out = generate(model, inputs)
        sees_both_ways = attention == "sdpa" and padding == "none"
        expected = oracle_generate_logits(
            model,
            typed if sees_both_ways else inputs,
            out.sequences[:, -STEPS:],
            stages_of(run),
            case.visual_ids,
            case.appended,
        )
        assert difference(torch.stack(out.logits, 1), expected) <= tolerance(expected)


@pytest.mark.parametrize("budget", [COUNT, RATIO], ids=["equal", "ragged"])
@pytest.mark.parametrize("how", ["tuple", "own cache", "embeddings"])
@torch.no_grad()
def test_decoding_by_hand(how: str, budget: dict[str, Any]) -> None:
    """A prefill that returns a tuple, fills the caller's cache or starts from embeddings; then a step by hand."""
    model = model_of("llava", "sdpa")
    variant: Any = "image" if budget is COUNT else "ragged"
    inputs = LLAVA.batch(model, 3, "left", variant=variant).inputs
    token = torch.tensor([[7], [9], [11]])
    longer = torch.cat([inputs["attention_mask"], torch.ones_like(token)], 1)
    with tp.apply(model, method([1], budget)) as run:
        cache = DynamicCache(config=model.config.get_text_config())
        if how == "tuple":
            out = model(**inputs, use_cache=True, return_dict=False)
            cache = next(item for item in out if isinstance(item, DynamicCache))
        elif how == "own cache":
            model(**inputs, **{CACHE: cache})
        else:
            embeds = model.get_input_embeddings()(inputs["input_ids"])
            rest = {k: v for k, v in inputs.items() if k != "input_ids"}
            model(**rest, inputs_embeds=embeds, **{CACHE: cache})
        logits = model(input_ids=token, attention_mask=longer, **{CACHE: cache}).logits[:, -1]
    expected = oracle_generate_logits(model, inputs, token.expand(-1, 2), stages_of(run), LLAVA.visual_ids)[:, 1]
    assert difference(logits, expected) <= tolerance(expected)


@torch.no_grad()
def test_own_positions_and_masks() -> None:
    """Position ids and a 4-D mask that the caller made are compacted like the model's own."""
    model = model_of("llava", "sdpa")
    inputs = LLAVA.batch(model, 2).inputs
    width = inputs["input_ids"].shape[1]
    causal = torch.ones(width, width, dtype=torch.bool).tril()[None, None].expand(2, 1, -1, -1)
    for own in ({"position_ids": 3 * torch.arange(width)[None]}, {"attention_mask": causal}):
        with tp.apply(model, method([1], COUNT)) as run:
            ours = model(**{**inputs, **own}).logits
        with masked(model, inputs, stages_of(run), LLAVA.visual_ids):
            full = model(**{**inputs, **own}, use_cache=False).logits
        gone = dropped(inputs, stages_of(run), LLAVA.visual_ids, layer=99)
        assert max(difference(ours[b], full[b][~gone[b]]) for b in range(2)) <= tolerance(full)


@torch.no_grad()
def test_scoring_without_a_cache_never_mixes_calls() -> None:
    """Likelihoods of answers, each one token longer, of images in the same or in freed memory: every call is scored
    anew, for it is no next step of a generation."""
    model = model_of("llava", "sdpa")
    how = tp.Method(
        layers={"name": "fixed", "layers": [1]}, pruner={"name": "topk", "scorer": LikeLastToken()}, budget=COUNT
    )
    prompt = LLAVA.batch(model, 1).inputs["input_ids"]
    noise = torch.Generator().manual_seed(3)
    texts = [torch.randint(3, 100, (1, 4 + n), generator=noise) for n in range(5)]
    buffer = torch.empty(1, 3, 32, 32)

    def kept(index: int, image: int, memory: str) -> list[list[int]]:
        pixels = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(image))
        pixels = buffer.copy_(pixels) if memory == "same" else pixels
        model(input_ids=torch.cat([prompt[:, :21], texts[index]], 1), pixel_values=pixels, use_cache=False)
        return run.stages[0].kept.tolist()

    for memory in ("same", "freed"):
        for images in (range(5), [0] * 5):
            alone = []
            for index, image in enumerate(images):
                with tp.apply(model, how) as run:
                    alone.append(kept(index, image, memory))
            with tp.apply(model, how) as run:
                together = [kept(index, image, memory) for index, image in enumerate(images)]
            assert together == alone


@torch.no_grad()
def test_sampling_options_and_chunked_text() -> None:
    """Logits processors do not matter; a chunked prefill is exact with all images in the first chunk, else refused."""
    model = model_of("llava", "sdpa")
    inputs = LLAVA.batch(model, 2).inputs
    chunked: list[dict[str, Any]] = [{"prefill_chunk_size": 21}] if TRANSFORMERS >= (5, 23) else []
    for more in ({"repetition_penalty": 1.3}, {"do_sample": True, "top_p": 0.9}, *chunked):
        check_generate(LLAVA, model, inputs, COUNT, **more)
    with pytest.raises(tp.TokenPruneError):
        check_generate(LLAVA, model, inputs, COUNT, prefill_chunk_size=8)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "gemma3"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_every_visual_token_may_go(family: str, attention: str) -> None:
    """From layer 1 on the model works with text alone, in prefill and decode."""
    case = CASES[family]
    model = model_of(family, attention)
    inputs = case.batch(model, 2, "left", variant="multi").inputs
    check_generate(case, model, inputs, {"name": "drop_all"})


class Halves(Pruner):
    """Keeps the even tokens of even samples and the first token of odd ones, whatever the budget says."""

    adaptive: ClassVar[bool] = True

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"hidden"})

    def select(self, ctx: PruneContext) -> Selection:
        assert ctx.open_ended
        assert ctx.quotas.tolist() == ctx.per_image.host_quotas
        place = torch.arange(ctx.visual_mask.shape[1]).expand(ctx.visual_mask.shape)
        odd = torch.arange(len(place))[:, None] % 2 == 1
        return Selection(torch.where(odd, place == 0, place % 2 == 0) & ctx.visual_mask)


def test_a_pruner_may_decide_how_many_survive() -> None:
    model = model_of("llava", "sdpa")
    inputs = LLAVA.batch(model, 3, "left").inputs
    how = tp.Method(layers={"name": "fixed", "layers": [1]}, pruner=Halves(), budget={"name": "adaptive"})
    with tp.apply(model, how) as run:
        logits = model(**inputs).logits
    assert run.stages[0].after == [8, 1, 8]
    expected = oracle_logits(model, inputs, stages_of(run), LLAVA.visual_ids)
    for sample, rows in enumerate(kept_rows(inputs, stages_of(run), LLAVA.visual_ids)):
        ours = logits[sample, logits.shape[1] - len(rows) :]
        assert difference(ours, expected[sample, rows]) <= tolerance(expected)
    with pytest.raises(ValueError, match="leaves the count to the pruner"):
        tp.Method(layers={"name": "fixed", "layers": [1]}, pruner=TopK(scorer={"name": "random"}), budget="adaptive")


def test_what_a_pruner_sees_of_the_text_and_the_budget() -> None:
    model = model_of("llava", "sdpa")
    inputs = LLAVA.batch(model, 2, "left", variant="multi").inputs
    pruner, seen = looking({"name": "norm", "source": "key"}, lambda ctx: ctx)
    how = tp.Method(
        layers={"name": "fixed", "layers": [1, 2]},
        pruner=pruner,
        budget={"name": "keep_schedule", "ratios": [0.5, 0.25]},
    )
    with tp.apply(model, how) as run:
        model(**inputs)
    for ctx, stage in zip(seen, run.stages, strict=True):
        assert [sum(row) for row in ctx.per_image.host_sizes] == stage.before
        assert [sum(row) for row in ctx.per_image.host_quotas] == stage.after
        assert list(ctx.target) == run.stages[-1].after
        text = ctx.text_mask.sum(1) + torch.tensor(stage.before)
        assert text.tolist() == ctx.row_mask.sum(1).tolist()
        assert not ctx.text_mask.gather(1, ctx.visual_rows)[ctx.visual_mask].any()
        assert ctx.signals.states("key").shape[:2] == ctx.signals.hidden().shape[:2] == ctx.visual_rows.shape
        assert ctx.hidden_rows.shape[:2] == ctx.row_mask.shape


def test_steps_after_an_unpruned_prefill_meet_no_hook_on_any_layer() -> None:
    """And a pruned conversation that goes on after it finds them again."""
    model = model_of("llava", "sdpa")
    inputs = LLAVA.batch(model, 2, "left").inputs
    text = {"input_ids": torch.randint(3, 100, (2, 9)), "attention_mask": torch.ones(2, 9, dtype=torch.long)}

    def hooks() -> list[int]:
        return [len(layer._forward_pre_hooks) for layer in model.get_decoder().layers]

    def step(past: Any, length: int) -> Any:
        mask = torch.cat([inputs["attention_mask"], torch.ones(2, length, dtype=torch.long)], 1)
        return model(input_ids=torch.full((2, 1), 7), attention_mask=mask[:, -length:], **{CACHE: past})

    width = inputs["input_ids"].shape[1]
    with torch.no_grad(), tp.apply(model, method([1], RATIO)):
        pruned = model(**inputs)[CACHE]
        expected = step(copy.deepcopy(pruned), width + 1).logits
        assert hooks() == [0, 1, 1, 1]
        unpruned = model(**text)[CACHE]
        step(unpruned, 10)
        assert hooks() == [0, 0, 0, 0]
        assert torch.equal(step(pruned, width + 1).logits, expected)
        assert hooks() == [0, 1, 1, 1]
    assert hooks() == [0, 0, 0, 0]


def test_a_stage_that_drops_nothing_keeps_what_was_there() -> None:
    case = CASES["llava"]
    model = case.build()
    made = case.batch(model, 3, "left", variant="ragged")
    inputs = made.inputs
    visual = [(row == 150).nonzero()[:, 0].tolist() for row in inputs["input_ids"]]

    def kept(tokens: list[int]) -> list[list[list[int]]]:
        budget = {"name": "keep_schedule", "tokens": tokens}
        pruner = {"name": "topk", "scorer": {"name": "random"}}
        how = tp.Method.from_dict(
            {"layers": {"name": "fixed", "layers": [1, 2, 3]}, "pruner": pruner, "budget": budget}
        )
        with torch.no_grad(), tp.apply(model, how) as run:
            model(**inputs)
        assert [stage.reason is None for stage in run.stages] == [tokens[0] < 32, True, False]
        assert run.stages[2].before == run.stages[2].after == run.stages[1].after
        return [[[p for p in row if p >= 0] for row in stage.kept.tolist()] for stage in run.stages]

    first, second, third = kept([99, 7, 7])
    assert first == visual
    assert all(len(row) == 7 for row in second)
    assert third == second
    first, second, third = kept([20, 7, 7])
    assert [len(row) for row in first] == [min(20, len(row)) for row in visual]
    assert third == second
