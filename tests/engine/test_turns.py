"""Images in later turns of a conversation: every call exact against the oracle of the whole conversation."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters
from transformers import PreTrainedModel, QuantizedCache, StaticCache
from transformers import cache_utils as caches

import tokenprune as tp
from tests.support.matrix import method
from tests.support.oracle import Stage, masked, oracle_generate_logits, tolerance
from tests.support.simple import CASE as LLAVA
from tests.support.simple import fastv
from tests.support.tiny import CASES, CORE
from tests.support.tiny.core import CACHE, IMAGE
from tests.support.turns import (
    DECODE,
    SEEN_BY_TURNS,
    Talk,
    Told,
    expected_turns,
    tell,
    tell_masked,
    worst_difference,
)
from tokenprune.errors import UnsupportedFeatureError
from tokenprune.flops.decoder import layer_flops

KINDS = ["ragged", DECODE, "multi", DECODE, "text", "image"]
FROM_TEXT = ["text", DECODE, "ragged", DECODE, "image"]
THIRD = {"name": "keep_ratio", "ratio": 0.33}
SETTINGS: dict[str, dict[str, Any]] = {
    "one stage": {"layers": [1]},
    "two stages, eager, left padding": {"layers": [1, 2], "attention": "eager", "padding": "left"},
    "layer 0, left padding": {"layers": [0], "padding": "left"},
    "first a turn of text": {"layers": [1], "kinds": FROM_TEXT, "padding": "left"},
    "cut caches": {"layers": [1, 2], "padding": "left", "cut": True},
}


def talk_of(name: str, kinds: list[str] = KINDS, padding: Any = "left", attention: str = "sdpa") -> tuple[Any, Talk]:
    """A model and a conversation with it."""
    case = CASES[name]
    model = case.build(attention)
    return model, Talk.of(case, model, kinds, padding)


def assert_exact(model: PreTrainedModel, talk: Talk, told: Told, cut: bool = False) -> None:
    """Every kept token of every call has the oracle's logits."""
    logits = expected_turns(model, talk, told.stages, cut)
    assert worst_difference(talk, told, logits) <= talk.case.slack * tolerance(logits)


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("name", CORE)
def test_later_images_are_exact(name: str, setting: str) -> None:
    how = dict(SETTINGS[setting])
    if how.get("cut") and name in SEEN_BY_TURNS:
        pytest.skip("the oracle of these families knows no cut caches")
    layers, cut = how.pop("layers"), how.pop("cut", False)
    model, talk = talk_of(name, **{"padding": "none", **how})
    with tp.apply(model, method(layers, THIRD, cut_earlier_caches=cut)) as run:
        told = tell(model, talk, run)
    dropped = [sum(stage.before) > sum(stage.after) for report in told.reports for stage in report.stages]
    assert any(dropped)
    assert told.cache.get_seq_length() == talk.whole["input_ids"].shape[1]
    assert_exact(model, talk, told, cut)


def test_the_oracle_by_turns_agrees_with_that_of_the_whole() -> None:
    """The second is the stronger one; the first is needed where transformers itself sees turns otherwise."""
    model, talk = talk_of("llava")
    with tp.apply(model, method([1], THIRD)) as run:
        told = tell(model, talk, run)
    by_turns, whole = tell_masked(model, talk, told.stages), expected_turns(model, talk, told.stages)
    real = talk.whole["attention_mask"].bool()
    assert (by_turns - whole)[real].abs().max() <= tolerance(whole)


# ---- kinds of caches


def static_cache(model: PreTrainedModel, talk: Talk) -> StaticCache:
    """Room for the conversation and eight tokens more."""
    return StaticCache(config=model.config.get_text_config(), max_cache_len=talk.whole["input_ids"].shape[1] + 8)


@pytest.mark.parametrize("kinds", [KINDS, FROM_TEXT], ids=["images first", "text first"])
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "qwen3_vl", "internvl"])
def test_on_a_static_cache(name: str, kinds: list[str]) -> None:
    model, talk = talk_of(name, kinds)
    with tp.apply(model, method([1, 2], THIRD)) as run:
        told = tell(model, talk, run, static_cache(model, talk))
    assert_exact(model, talk, told)


@pytest.fixture
def _fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("_fresh_dynamo")
@pytest.mark.parametrize("positions", ["original", "renumbered"])
def test_compiled_steps_between_images_share_a_graph(positions: str) -> None:
    """Steps behind the first turn are traced; steps behind the second run the same graph."""
    model, talk = talk_of("llava", ["image", DECODE, "multi", DECODE, "text", "image", DECODE], "none")
    step = torch.compile(model, backend="eager", fullgraph=True)
    later = [turn for turn in talk.turns if turn.kind == DECODE]
    with tp.apply(model, method([1, 2], THIRD, positions=positions)) as run:
        eager = tell(model, talk, run, static_cache(model, talk))
    with tp.apply(model, method([1, 2], THIRD, positions=positions)):  # samples are numbered anew
        logits, made, cache = [], [], static_cache(model, talk)
        with torch.no_grad():
            for turn in talk.turns:
                call = talk.call(turn)
                if turn in later:
                    del call["attention_mask"]  # nothing is padding; a mask grows, and its shape is another each time
                output = (step if turn in later else model)(**call, use_cache=True, **{CACHE: cache})
                logits.append(output.logits)
                made.append(counters["stats"]["unique_graphs"])
    assert made[-1] == made[1] == 1
    assert not counters["graph_break"]
    for ours, theirs in zip(logits, eager.logits, strict=True):
        assert (ours - theirs).abs().max() <= tolerance(theirs)


@pytest.mark.skipif(not hasattr(caches, "Fp8QuantizedLayer"), reason="this transformers has no cache of 8-bit floats")
def test_on_a_cache_of_8_bit_floats() -> None:
    """It is labelled, and it differs from the oracle as the unpruned one differs from itself with a plain cache."""
    model, talk = talk_of("llava")

    def fp8() -> QuantizedCache:
        return QuantizedCache("fp8", model.config.get_text_config())

    with tp.apply(model, method([1, 2], THIRD)) as run:
        told = tell(model, talk, run, fp8())
    assert all(report.kv_rounded == "8-bit floats" for report in told.reports)
    with tp.apply(model, method([1], {"name": "keep_ratio", "ratio": 1.0})) as run:
        whole, plain = tell(model, talk, run, fp8()), tell(model, talk, run)
    ours = worst_difference(talk, told, expected_turns(model, talk, told.stages))
    theirs = max(float((a - b).abs().max()) for a, b in zip(whole.logits, plain.logits, strict=True))
    assert 0 < ours <= 1.5 * theirs


def test_one_prompt_cache_serves_many_questions() -> None:
    """Deep copies of a pruned prompt go on with other pictures; the prompt itself stays as it was."""
    model, first = talk_of("llava", ["ragged"])
    talks = [Talk.of(LLAVA, model, ["ragged", *more, DECODE], "left") for more in (["multi"], ["text", "image"])]
    answers = list[Told]()
    with tp.apply(model, method([1], THIRD)) as run:
        prompt = tell(model, first, run)
        for talk in talks:
            told = tell(model, talk, run, copy.deepcopy(prompt.cache), talk.turns[1:])
            answers.append(Told(prompt.logits + told.logits, prompt.kept + told.kept, [], told.cache))
    for talk, both in zip(talks, answers, strict=True):
        assert_exact(model, talk, both)
    assert prompt.cache.get_seq_length() == first.whole["input_ids"].shape[1]


@torch.no_grad()
@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_generate_of_qwen_takes_positions(name: str) -> None:
    """transformers cannot count positions there from the pictures of one turn: they are given."""
    case = CASES[name]
    model: Any = case.build()
    first, second = (case.batch(model, 1, "none", seed=seed).inputs for seed in (1, 2))
    more = {"max_new_tokens": 4, "output_logits": True, "return_dict_in_generate": True}
    with tp.apply(model, fastv()) as run:
        told = model.generate(**first, **more)
        start = told.sequences.shape[1] - 1
        kept = [run.stages[0].kept]
        ids = torch.cat([told.sequences, second["input_ids"]], 1)
        types = (ids == IMAGE).long()
        grids = torch.cat([first["image_grid_thw"], second["image_grid_thw"]])
        places = model.model.get_rope_index(ids, mm_token_type_ids=types, image_grid_thw=grids)[0]
        asked = {**second, "input_ids": ids, "attention_mask": torch.ones_like(ids), "mm_token_type_ids": types}
        out = model.generate(**asked, position_ids=places, **{CACHE: told[CACHE]}, **more)
        kept.append(run.stages[0].kept + start)
    pixels = torch.cat([first["pixel_values"], second["pixel_values"]])
    whole = {**asked, "pixel_values": pixels, "image_grid_thw": grids}
    wanted = oracle_generate_logits(model, whole, out.sequences[:, -4:], [(1, torch.cat(kept, 1))], case.visual_ids)
    assert (torch.stack(out.logits, 1) - wanted).abs().max() <= tolerance(wanted)


# ---- positions without gaps


def numbered(talk: Talk, stages: list[Stage]) -> Tensor:
    """Positions of the conversation where a turn's rows count on from the moment at which a sample first lost any."""
    given = talk.positions
    ids, real = given.clone(), talk.whole["attention_mask"].bool()
    visual = torch.isin(talk.whole["input_ids"], torch.tensor(talk.case.visual_ids))
    for sample in range(len(real)):
        kept = set(stages[0][1][sample].tolist())
        following: Tensor | None = None
        for turn in talk.turns:
            own = [i for i in range(turn.start, turn.start + turn.width) if real[sample, i]]
            left = [i for i in own if not visual[sample, i] or i in kept]
            if following is None and len(left) < len(own):
                following = given[..., sample, own[0]]
            if following is not None:
                for place in left:
                    ids[..., sample, place] = following
                    following = following + 1
    return ids


@pytest.mark.parametrize("budget", [THIRD, {"name": "keep_count", "tokens": 17}], ids=["all lose", "some lose later"])
@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "qwen3_vl"])
@pytest.mark.parametrize(
    "kinds", [KINDS, FROM_TEXT, ["image", DECODE, "multi", DECODE]], ids=["ragged", "text", "image"]
)
def test_renumbered_positions_count_on(name: str, cache: str, budget: dict[str, Any], kinds: list[str]) -> None:
    model, talk = talk_of(name, kinds)
    with tp.apply(model, method([0], budget, positions="renumbered")) as run:
        told = tell(model, talk, run, static_cache(model, talk) if cache == "static" else None)
    ids = numbered(talk, told.stages)
    assert not torch.equal(ids, talk.positions)
    with torch.no_grad(), masked(model, talk.whole, told.stages, talk.case.visual_ids):
        wanted = model(**talk.whole, position_ids=ids, use_cache=False).logits
    assert worst_difference(talk, told, wanted) <= tolerance(wanted)


@torch.no_grad()
def test_renumbered_positions_of_cut_layers_go_on() -> None:
    """A stage that drops in the first turn, and nothing in the second: its layers are cut, and count on."""
    model, talk = talk_of("llava", ["multi", "image", DECODE], "none")
    seen: list[list[int]] = []

    def note(_: Any, args: Any, kwargs: dict[str, Any]) -> None:
        seen.append(kwargs["position_ids"][0].tolist())

    how = method([0, 2], {"name": "keep_schedule", "tokens": [17, 5]}, positions="renumbered", cut_earlier_caches=True)
    with tp.apply(model, how) as run:
        hook = model.get_decoder().layers[0].register_forward_pre_hook(note, with_kwargs=True)
        tell(model, talk, run)
        hook.remove()
    count = sum(map(len, seen))
    assert [place for call in seen for place in call] == list(range(count))
    assert count == talk.whole["input_ids"].shape[1] - 15  # 32 - 17, and nothing of the second turn


@torch.no_grad()
def test_renumbered_layers_count_on_from_what_each_has_lost() -> None:
    """The first turn, of 44 tokens, loses 12 before layer 1 and 3 more before layer 2; the second loses none."""
    model, talk = talk_of("llava", ["multi", "image"], "none")
    rotary, seen = model.get_decoder().rotary_emb, dict[int, Tensor]()
    begins = {1: 44 - 12, 2: 44 - 12 - 3, 3: 44 - 12 - 3}
    cosines = {layer: rotary(torch.zeros(1), torch.arange(26)[None] + begins[layer])[0] for layer in begins}
    how = method([1, 2], {"name": "keep_schedule", "tokens": [20, 17]}, positions="renumbered")
    with tp.apply(model, how) as run:
        cache = tell(model, talk, run, None, talk.turns[:1]).cache
        for layer in begins:

            def note(_: Any, args: Any, kwargs: dict[str, Any], layer: int = layer) -> None:
                seen[layer] = kwargs["position_embeddings"][0][0]

            model.get_decoder().layers[layer].register_forward_pre_hook(note, with_kwargs=True)
        tell(model, talk, run, cache, talk.turns[1:])
    for layer, expected in cosines.items():
        assert torch.equal(seen[layer], expected[0]), layer


@pytest.mark.parametrize("cut", [False, True])
def test_renumbered_behind_a_layer_equals_the_eager_and_the_static_way(cut: bool) -> None:
    """The layers before the stage keep the model's positions; two caches that work differently agree."""
    model, talk = talk_of("qwen2_5_vl")
    how = method([1, 2], THIRD, positions="renumbered", cut_earlier_caches=cut)
    with tp.apply(model, how) as run:
        dynamic = tell(model, talk, run)
    with tp.apply(model, how) as run:  # samples are numbered anew: the random score is the same
        static = tell(model, talk, run, static_cache(model, talk))
    for ours, theirs in zip(dynamic.logits, static.logits, strict=True):
        assert (ours - theirs).abs().max() <= tolerance(theirs)


# ---- what scorers and budgets see


@torch.no_grad()
def attention_of_last(model: PreTrainedModel, talk: Talk, stages: list[Stage], layer: int) -> Tensor:
    """Attention of the last token in a layer, mean over heads, ``[batch, tokens]``, dropped tokens hidden."""
    with masked(model, talk.whole, stages, talk.case.visual_ids):
        output = model(**talk.whole, position_ids=talk.positions, use_cache=False, output_attentions=True)
    attention: Tensor = output.attentions[layer][:, :, -1].mean(1)
    return attention


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("at", ["previous", "entering"])
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "qwen3_vl"])
def test_attention_of_a_later_turn_is_that_of_the_conversation(name: str, at: str, cache: str) -> None:
    """What FastV scores in the last turn are entries of the attention map over all turns, those before pruned."""
    model, talk = talk_of(name, ["ragged", DECODE, "image"], attention="eager")
    how = tp.Method(
        layers={"name": "fixed", "layers": [1, 2]},
        pruner={"name": "topk", "scorer": {"name": "fastv", "at": at}},
        budget={"name": "keep_schedule", "tokens": [9, 6]},
    )
    with tp.apply(model, how) as run:
        told = tell(model, talk, run, static_cache(model, talk) if cache == "static" else None)
    candidates = everything(talk)
    for layer, kept in told.kept[-1]:
        seen = [(place, torch.cat([earlier, candidates], 1)) for place, earlier in told.kept[0]]
        attention = attention_of_last(model, talk, seen, layer - (at == "previous"))
        for sample in range(3):
            best = attention[sample, candidates[sample]].topk(kept.shape[1]).indices
            assert sorted(candidates[sample, best].tolist()) == sorted(kept[sample].tolist()), (layer, sample)
        candidates = kept


def everything(talk: Talk) -> Tensor:
    """The visual tokens of the last turn, long ``[batch, tokens]``."""
    turn = talk.turns[-1]
    visual = torch.isin(turn.inputs["input_ids"], torch.tensor(talk.case.visual_ids))
    return torch.stack([row.nonzero()[:, 0] + turn.start for row in visual])


def test_a_budget_in_flops_counts_the_keys_of_earlier_turns() -> None:
    """As many tokens as possible stay, and the FLOPs of the turn fall by as much as was asked for.

    Without the keys of earlier turns one token more would stay.
    """
    model, talk = talk_of("llava", ["multi", DECODE, "multi"], "none")
    budget = {"name": "flops_reduction", "percent": 26, "scope": "decoder"}
    with tp.apply(model, method([1], budget)) as run:
        told = tell(model, talk, run)
    report, config = told.reports[-1], model.config.get_text_config()
    (whole,), (kept,) = set(report.before), set(report.after)
    text = talk.turns[-1].width - whole
    held = [told.cache.get_seq_length() - talk.turns[-1].width] + [report.cached[1]] * (report.num_layers - 1)
    assert report.cached == held
    assert held[1] < held[0]

    def flops(visual: int, behind: list[int] = held) -> int:
        return sum(
            layer_flops(config, text + (visual if layer else whole), behind[layer], layer)
            for layer in range(report.num_layers)
        )

    assert flops(kept) <= 0.74 * flops(whole) < flops(kept + 1)
    for fewer in ([0] * report.num_layers, [0, *held[1:]]):
        assert flops(kept + 1, fewer) <= 0.74 * flops(whole, fewer)
    assert (report.flops(), report.flops(pruned=False)) == (flops(kept), flops(whole))
    assert f"a later turn: the caches of the layers held {held[1]} to {held[0]} tokens" in str(report)


def test_the_report_of_a_later_turn() -> None:
    """Its tokens are those of the turn, its bytes those of the whole cache."""
    model, talk = talk_of("llava", ["image", DECODE, "image"], "none")
    with tp.apply(model, fastv()) as run:
        told = tell(model, talk, run)
    report = told.reports[-1]
    assert (report.before, report.after) == ([16] * 3, [5] * 3)
    per_row = report.kv_bytes_unpruned // (4 * told.cache.get_seq_length())
    rows = [layer.keys.shape[-2] for layer in told.cache.layers]
    assert report.kv_bytes == per_row * sum(rows)
    assert report.cached_per_layer() == rows
    assert rows == [told.cache.get_seq_length(), *[told.cache.get_seq_length() - 22] * 3]


# ---- the ends of conversations


def test_a_crop_stops_at_the_last_picture() -> None:
    model, talk = talk_of("llava", ["image", DECODE, "image", DECODE], "none")
    with tp.apply(model, fastv()) as run:
        told = tell(model, talk, run)
        told.cache.crop(-3)
        again = tell(model, talk, run, told.cache, talk.turns[-3:])
        with pytest.raises(UnsupportedFeatureError, match="cannot be cropped by 4 tokens: 3 follow its prompt"):
            again.cache.crop(-4)
    for ours, theirs in zip(again.logits, told.logits[-3:], strict=True):
        assert torch.equal(ours, theirs)


@torch.no_grad()
def test_each_turn_may_have_a_budget_of_its_own() -> None:
    """Requests of a service: a block for each, with another pruner and budget before the same layers."""
    model, talk = talk_of("llava", ["multi", DECODE, "image", "ragged", DECODE], "left")
    second, third = talk.turns[4:6]
    with tp.apply(model, method([1, 2], THIRD)) as run:
        parts = [tell(model, talk, run, None, talk.turns[:4])]
        with run.using(fastv([1, 2], name="keep_count", tokens=7)) as part:
            parts.append(tell(model, talk, part, parts[0].cache, [second]))
        with run.using(method([1, 2], {"name": "keep_ratio", "ratio": 0.5})) as part:
            parts.append(tell(model, talk, part, parts[0].cache, [third]))
        parts.append(tell(model, talk, run, parts[0].cache, talk.turns[6:]))
    told = Told([x for p in parts for x in p.logits], [x for p in parts for x in p.kept], [], parts[0].cache)
    assert parts[1].reports[0].after == [7] * 3
    assert_exact(model, talk, told)


@torch.no_grad()
def test_pictures_are_pruned_before_the_same_layers() -> None:
    model, talk = talk_of("llava", ["image", "image", "text"], "none")
    first, second, text = talk.turns
    others = [fastv([2]), method([1], THIRD, positions="renumbered"), method([1], THIRD, cut_earlier_caches=True)]
    with tp.apply(model, fastv()) as run:
        cache = model(**talk.call(first))[CACHE]
        for how in others:
            match = r"the KV cache was pruned before layer 1 at original positions, and the method in use prunes before"
            with run.using(how), pytest.raises(UnsupportedFeatureError, match=match):
                model(**talk.call(second), **{CACHE: cache})
        model(**talk.call(second), **{CACHE: cache})  # nothing was lost
        with run.using(fastv([2])):
            model(**talk.call(text), **{CACHE: cache})  # text goes on everywhere
        assert cache.get_seq_length() == talk.whole["input_ids"].shape[1]


def test_pictures_of_an_unpruned_turn_stay() -> None:
    model, talk = talk_of("llava", ["multi", DECODE, "image", DECODE])
    later = talk.turns[4]
    with tp.apply(model, method([1, 2], THIRD)) as run:
        told = tell(model, talk, run, None, talk.turns[:4])
        with run.using(None) as part:
            unpruned = tell(model, talk, part, told.cache, talk.turns[4:])
    visual = torch.isin(later.inputs["input_ids"], torch.tensor(LLAVA.visual_ids))
    whole = torch.stack([row.nonzero()[:, 0] + later.start for row in visual])
    both = Told(told.logits + unpruned.logits, [*told.kept, [(1, whole), (2, whole)]], [], told.cache)
    assert_exact(model, talk, both)


@torch.no_grad()
def test_a_conversation_from_before_the_block_is_pruned_from_here_on() -> None:
    model, talk = talk_of("llava", ["image", "image"], "none")
    first, second = talk.turns
    cache = model(**talk.call(first), use_cache=True)[CACHE]
    with tp.apply(model, fastv()) as run:
        told = tell(model, talk, run, cache, [second])
    whole = torch.where(first.inputs["input_ids"][0] == LLAVA.visual_ids[0])[0].expand(3, -1)
    kept = [(1, torch.cat([whole, told.kept[0][0][1]], 1))]
    wanted = expected_turns(model, talk, kept)
    both = Told(told.logits, [kept], [], told.cache)
    assert worst_difference(talk, both, wanted, [second]) <= tolerance(wanted)


@pytest.mark.parametrize("shape", [(3, 26), (3, 1, 26, 26), (3, 1, 52, 52), (1, 1, 26, 51)])
@torch.no_grad()
def test_a_mask_that_does_not_cover_both_is_refused(shape: tuple[int, ...]) -> None:
    model, talk = talk_of("llava", ["image", "image"], "none")
    first, second = talk.turns
    with tp.apply(model, fastv()):
        cache = model(**talk.call(first))[CACHE]
        call = {**talk.call(second), "attention_mask": torch.ones(shape, dtype=torch.bool)}
        with pytest.raises(UnsupportedFeatureError, match=r"brings 26 tokens to a KV cache of 26, which its attention"):
            model(**call, **{CACHE: cache})


@torch.no_grad()
def test_masks_by_kind_of_layer() -> None:
    """Those that a model with windows makes itself: the window's is narrower than the conversation."""
    model, talk = talk_of("gemma3", ["image", "image"], "left")
    first, second = talk.turns
    made: list[Any] = []
    with tp.apply(model, method([1], THIRD)):
        cache = model(**talk.call(first), use_cache=True)[CACHE]
        hook = model.get_decoder().register_forward_pre_hook(
            lambda _, args, kwargs: made.append(kwargs["attention_mask"]), with_kwargs=True
        )
        expected = model(**talk.call(second), **{CACHE: cache}).logits
        hook.remove()
    assert made[0]["sliding_attention"].shape[-1] < talk.whole["input_ids"].shape[1]
    with tp.apply(model, method([1], THIRD)):
        cache = model(**talk.call(first), use_cache=True)[CACHE]
        given = model(**{**talk.call(second), "attention_mask": made[0]}, **{CACHE: cache}).logits
    assert torch.equal(given, expected)


@torch.no_grad()
def test_a_turn_on_a_dynamic_cache_leaves_no_hooks() -> None:
    """Graphs need them for the rest of the block; there are none here, and unpruned decode steps stay free of them."""
    model, talk = talk_of("llava", ["image", "image"], "none")
    text = LLAVA.batch(model, 2, variant="text").inputs
    with tp.apply(model, fastv()) as run:
        tell(model, talk, run)
        cache = model(**text, use_cache=True)[CACHE]
        model(input_ids=torch.full((2, 1), 5), **{CACHE: cache})
        assert not any(layer._forward_pre_hooks for layer in model.get_decoder().layers)


@torch.no_grad()
def test_prompt_lookup_passes_all_tokens_again() -> None:
    """A limit of transformers, in a turn of text, too: the error names it."""
    model, inputs = LLAVA.build(), LLAVA.batch(LLAVA.build(), 1).inputs
    with tp.apply(model, fastv()):
        cache = model(**inputs)[CACHE]
        ids = torch.cat([inputs["input_ids"], torch.tensor([[5, 6, 7]])], 1)
        with pytest.raises(
            UnsupportedFeatureError, match="prompt lookup in a later turn: transformers passes all tokens"
        ):
            model.generate(ids, attention_mask=torch.ones_like(ids), prompt_lookup_num_tokens=2, **{CACHE: cache})


@pytest.mark.parametrize("more", [{"num_beams": 2}, {"num_return_sequences": 2, "do_sample": True}])
@torch.no_grad()
def test_samples_that_are_repeated_get_each_others_pixels(more: dict[str, Any]) -> None:
    """transformers repeats the pixels wrongly, without pruning, too: refused."""
    model, talk = talk_of("llava", ["image", "image"], "none")
    first, second = talk.turns
    ids = torch.cat([first.inputs["input_ids"], second.inputs["input_ids"]], 1)
    asked = {"attention_mask": torch.ones_like(ids), "pixel_values": second.inputs["pixel_values"]}
    with tp.apply(model, fastv()):
        cache = model(**talk.call(first))[CACHE]
        cache.batch_repeat_interleave(2)
        with pytest.raises(
            UnsupportedFeatureError, match="beams or several returned sequences, with images in a later"
        ):
            model.generate(ids, **asked, **{CACHE: cache}, max_new_tokens=2, **more)


@pytest.mark.parametrize("layer", [0, 2, 3])
@pytest.mark.parametrize("kind", ["dynamic", "static"])
@torch.no_grad()
def test_an_interrupted_turn_cannot_be_repeated(kind: str, layer: int) -> None:
    model, talk = talk_of("llava", ["image", "image"], "none")
    first, second = ({**turn.inputs} for turn in talk.turns)
    for inputs in (first, second):
        del inputs["attention_mask"]

    def stop(*_: Any) -> None:
        raise KeyError("interrupted")

    with tp.apply(model, fastv()):
        cache = model(**first, **({CACHE: static_cache(model, talk)} if kind == "static" else {}))[CACHE]
        hook = model.get_decoder().layers[layer].register_forward_hook(stop)
        with pytest.raises(KeyError):
            model(**second, **{CACHE: cache})
        hook.remove()
        with pytest.raises(UnsupportedFeatureError, match="a forward was interrupted"):
            model(**second, **{CACHE: cache})


@torch.no_grad()
def test_labels_are_those_of_the_turn() -> None:
    model, talk = talk_of("llava", ["image", "image"], "none")
    first, second = talk.turns
    with tp.apply(model, fastv()) as run:
        cache = model(**talk.call(first))[CACHE]
        with pytest.raises(UnsupportedFeatureError, match="labels of 52 tokens for a call that brings 26"):
            model(**talk.call(second), labels=talk.whole["input_ids"], **{CACHE: cache})
        model(**talk.call(second), labels=second.inputs["input_ids"], **{CACHE: cache})
    assert run.report.targets == [25] * 3


@pytest.mark.parametrize("layers", [[0], [2]])
@torch.no_grad()
def test_a_static_cache_without_room_is_refused(layers: list[int]) -> None:
    model, talk = talk_of("llava", ["image", "image"], "none")
    first, second = talk.turns
    cache = StaticCache(config=model.config.get_text_config(), max_cache_len=51)
    with tp.apply(model, method(layers, THIRD)):
        model(**talk.call(first), **{CACHE: cache})
        match = r"room for 51 tokens, and the prompt has 26 before it is pruned, behind 26 of earlier turns"
        with pytest.raises(UnsupportedFeatureError, match=match):
            model(**talk.call(second), **{CACHE: cache})
        small = StaticCache(config=model.config.get_text_config(), max_cache_len=25)
        with pytest.raises(UnsupportedFeatureError, match="room for 25 tokens, and the prompt has 26 before"):
            model(**talk.call(first), **{CACHE: small})


@torch.no_grad()
def test_after_the_block_pictures_are_refused() -> None:
    model, talk = talk_of("llava", ["image", "image"], "none")
    first, second = talk.turns
    with tp.apply(model, fastv()):
        cache = model(**talk.call(first))[CACHE]
    with pytest.raises(UnsupportedFeatureError, match="inside an apply block that has ended"):
        model(**talk.call(second), **{CACHE: cache})
    with tp.apply(model, fastv()), pytest.raises(UnsupportedFeatureError, match="pruned by another apply block"):
        model(**talk.call(second), **{CACHE: cache})


def test_a_turn_whose_pictures_all_stay() -> None:
    """Only the first turn loses tokens; the second is exact on what is left of it."""
    model, talk = talk_of("llava", ["multi", DECODE, "image", DECODE], "left")
    with tp.apply(model, method([1, 2], {"name": "keep_count", "tokens": 17})) as run:
        told = tell(model, talk, run)
    assert told.reports[-1].reason == "not pruned: the budget is no reduction"
    assert_exact(model, talk, told)
