"""Rows: what may be done with a cache after its prompt."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

import tokenprune as tp
from tests.support import matrix
from tests.support.compatibility.judging import Apply, Found, Row
from tests.support.compatibility.kinds import COMPILED, DEFAULT, FP8, NEW, STATIC, Use, cache_of, over, stages_of
from tests.support.tiny.core import CACHE
from tokenprune.authoring import PruneContext, Scorer

CACHES = (DEFAULT, STATIC, COMPILED, FP8)
STAGES = matrix.method([1, 2], {"name": "keep_schedule", "tokens": [9, 5]})
BY_HAND = (DEFAULT, STATIC, FP8)
TURN = 4
"""Tokens of a later turn."""


class First(Scorer):
    """Equal scores: the first tokens of each picture are kept, which is known without asking the run."""

    @property
    def needs(self) -> frozenset[str]:
        """Nothing."""
        return frozenset()

    def score(self, ctx: PruneContext) -> Tensor:
        """Zeros."""
        return torch.zeros(ctx.visual_mask.shape)


def text_turn(kind: str, apply: Apply) -> Found:
    """A question behind an answer, in a second `generate`."""
    use = Use(kind)
    more = torch.randint(3, 100, (use.batch, TURN), generator=torch.Generator().manual_seed(0))
    with apply(use.model, STAGES) as run:
        first = use.generate(room=TURN + NEW)
        ids = torch.cat([first.sequences, more], 1)
        seen = torch.cat([use.inputs["attention_mask"], torch.ones_like(ids[:, -NEW - TURN :])], 1)
        out = use.generate({"input_ids": ids, "attention_mask": seen}, **{CACHE: first[CACHE]})
    return use.judged(run, out)


def picture_turn(kind: str, apply: Apply) -> Found:
    """A second picture behind an answer; the first half of each picture is kept."""
    use = Use(kind, batch=1, padding="none")
    later = use.case.batch(use.model, 1, "none", seed=2).inputs
    half = tp.Method(
        layers={"name": "fixed", "layers": [2]},
        pruner={"name": "topk", "scorer": First()},
        budget={"name": "keep_ratio", "ratio": 0.5},
    )
    with apply(use.model, half) as run:
        first = use.generate(room=later["input_ids"].shape[1] + NEW)
        ids = torch.cat([first.sequences, later["input_ids"]], 1)
        turn = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": later["pixel_values"]}
        out = use.generate(turn, **{CACHE: first[CACHE]})
    both = {**turn, "pixel_values": torch.cat([use.inputs["pixel_values"], later["pixel_values"]])}
    places = (ids[0] == use.case.visual_ids[0]).nonzero()[:, 0].chunk(2)
    kept = torch.cat([place[: len(place) // 2] for place in places])[None]
    expected = use.expected(both, out.sequences[:, ids.shape[1] :], [(2, kept)])
    return use.found(run, torch.stack(out.logits, 1), expected)


def prompted(use: Use) -> Any:
    """The cache of the prompt, read by a call of the model itself."""
    cache = cache_of(use.kind, use.model, use.inputs)[CACHE]
    use.model(**use.inputs, **{CACHE: cache})
    return cache


def by_hand(use: Use, cache: Any, token: int) -> Tensor:
    """Logits of one more token; compiled where the kind of cache says so. Without padding it needs no mask."""
    call = torch.compile(use.model.__call__, backend="eager") if use.kind == COMPILED else use.model
    logits: Tensor = call(input_ids=torch.full((use.batch, 1), token), **{CACHE: cache}).logits
    return logits


Change = Callable[[Use, Any], Any]


def stepped(change: Change) -> Callable[[str, Apply], Found]:
    """Two tokens behind a prompt, on what `change` makes of the cache."""

    def cell(kind: str, apply: Apply) -> Found:
        use = Use(kind, variant="ragged", padding="none")
        with apply(use.model, STAGES) as run:
            cache = prompted(use)
            stages = stages_of(run)
            cache = change(use, cache)
            ours = torch.cat([by_hand(use, cache, token) for token in (5, 6)], 1)
        tokens = torch.tensor([[5, 6, 7]]).expand(use.batch, -1)
        return use.found(run, ours, use.expected(use.inputs, tokens, stages)[:, 1:])

    return cell


def cropped(use: Use, cache: Any) -> Any:
    """Tokens behind the prompt are taken off."""
    by_hand(use, cache, 9)
    by_hand(use, cache, 8)
    cache.crop(-2)
    return cache


def cropped_too_far(use: Use, cache: Any) -> Any:
    """The last token of the prompt is taken off."""
    cache.crop(-1)
    return cache


def copied(use: Use, cache: Any) -> Any:
    """One prompt, several answers: the copy goes on with one, the cache itself with another."""
    copied = copy.deepcopy(cache)
    by_hand(use, cache, 9)
    return copied


def alternated(use: Use, cache: Any) -> Any:
    """Another prompt is read, and goes on, in between."""
    other = Use(use.kind, batch=use.batch, padding="none", model=use.model)
    use.model(input_ids=torch.full((use.batch, 1), 9), **{CACHE: prompted(other)})  # eagerly: compiling it takes long
    return cache


def afterwards(kind: str, apply: Apply, again: bool) -> Found:
    """A step on a pruned cache when its block has ended, or in another block."""
    use = Use(kind, padding="none")
    with apply(use.model, STAGES) as run:
        cache = prompted(use)
    with apply(use.model, STAGES) if again else nullcontext():
        ours = by_hand(use, cache, 5)
    return use.found(run, ours, use.expected(use.inputs, torch.tensor([[5, 6]] * 2), stages_of(run))[:, 1:])


CROP = "engine/test_assisted.py::test_a_crop_goes_back"
ENDED = "engine/test_cache.py::test_a_cache_after_its_block_is_refused"
STATIC_ENDED = "engine/test_static.py::test_a_pruned_static_cache_belongs_to_its_block"

ROWS = (
    Row(
        "later turn of text",
        over(CACHES, text_turn),
        {
            DEFAULT: "engine/test_engine_oracle.py::test_next_turn_on_the_cache",
            STATIC: "engine/test_static.py::test_a_cache_of_the_callers",
        },
    ),
    Row(
        "later turn with a new picture",
        over(CACHES, picture_turn),
        {
            DEFAULT: "engine/test_turns.py::test_later_images_are_exact",
            STATIC: "engine/test_turns.py::test_on_a_static_cache",
            COMPILED: "engine/test_turns.py::test_compiled_steps_between_images_share_a_graph",
            FP8: "engine/test_turns.py::test_on_a_cache_of_8_bit_floats",
        },
    ),
    Row(
        "several conversations in turn",
        over(CACHES, stepped(alternated)),
        {DEFAULT: "engine/test_invariants.py::test_9_two_conversations_may_alternate"},
    ),
    Row(
        "deep copy of a prompt's cache",
        over(CACHES, stepped(copied)),
        {
            DEFAULT: "engine/test_cut_caches.py::test_copies_of_the_cache_and_picked_samples",
            STATIC: "engine/test_static.py::test_a_copy_goes_on_by_itself",
        },
    ),
    Row(
        "`crop` of tokens behind the prompt",
        over(CACHES, stepped(cropped)),
        {
            DEFAULT: CROP,
            STATIC: CROP,
            FP8: "engine/test_quantized.py::test_what_transformers_cannot_do_with_what_is_rounded_is_refused",
        },
    ),
    Row("`crop` into the prompt", over(BY_HAND, stepped(cropped_too_far)), {DEFAULT: CROP, STATIC: CROP}),
    Row(
        "cache after its block",
        over(BY_HAND, lambda kind, apply: afterwards(kind, apply, again=False)),
        {DEFAULT: ENDED, STATIC: STATIC_ENDED},
    ),
    Row(
        "cache in another `apply` block",
        over(BY_HAND, lambda kind, apply: afterwards(kind, apply, again=True)),
        {DEFAULT: ENDED, STATIC: STATIC_ENDED},
    ),
)
