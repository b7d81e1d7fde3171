"""Rows: what a method may do."""

from __future__ import annotations

from typing import Any

import torch

import tokenprune as tp
from tests.support import matrix
from tests.support.compatibility.judging import Apply, Found, Row
from tests.support.compatibility.kinds import COMPILED, DEFAULT, EAGER, FP8, KINDS, NONE, STATIC, Use, over, stages_of
from tests.support.renumbered import expected_logits
from tests.support.simple import fastv

SCHEDULE = {"name": "keep_schedule", "ratios": [0.6, 0.3]}
RATIO = {"name": "keep_ratio", "ratio": 0.4}


def prunes(kind: str, apply: Apply, how: tp.Method, **use: Any) -> Found:
    """A greedy generation with the method."""
    made = Use(kind, **{"variant": "ragged", **use})
    with apply(made.model, how) as run:
        out = made.generate()
    return made.judged(run, out, cut=how.cut_earlier_caches)


def renumbered(kind: str, apply: Apply) -> Found:
    """Positions without gaps; pruned before layer 0, where one set of numbers is right for all layers."""
    use = Use(kind, variant="ragged")
    with apply(use.model, matrix.method([0], RATIO, positions="renumbered")) as run:
        out = use.generate()
    new = out.sequences[:, use.inputs["input_ids"].shape[1] :]
    expected = expected_logits(use.model, use.family, use.inputs, new, stages_of(run))
    return use.found(run, torch.stack(out.logits, 1), expected)


def at_once(kind: str, apply: Apply) -> Found:
    """Two generations in blocks of their own; the worse one counts."""
    use = Use(kind, variant="ragged")
    found = []
    with apply(use.model, None) as run:
        for how in (fastv([1], **RATIO), fastv([2], name="keep_ratio", ratio=0.5)):
            with run.using(how) as part:
                out = use.generate()
            found.append(use.judged(part, out))
    return max(found, key=lambda one: one.worst)


def reads(scorer: Any) -> tp.Method:
    """Two stages that keep what a scorer likes."""
    return tp.Method(
        layers={"name": "fixed", "layers": [1, 2]}, pruner={"name": "topk", "scorer": scorer}, budget=SCHEDULE
    )


STATIC_READS = "engine/test_static.py::test_scorers_that_read_attention_do_not_see_free_rows"
EXACT_STATIC = "engine/test_static.py::test_a_static_cache_is_the_oracle"
CUT = matrix.method([2], RATIO, cut_earlier_caches=True)

ROWS = (
    Row(
        "several stages",
        over(KINDS, lambda kind, apply: prunes(kind, apply, matrix.method([1, 2], SCHEDULE))),
        {DEFAULT: "engine/test_engine_oracle.py::test_two_stages", STATIC: EXACT_STATIC},
    ),
    Row(
        "`positions: renumbered`",
        over(KINDS, renumbered),
        {
            DEFAULT: "engine/test_renumber.py::test_every_step_is_that_of_renumbered_positions",
            COMPILED: "engine/test_static.py::test_decoding_is_one_graph",
            NONE: "engine/test_renumber.py::test_beams_and_generation_without_a_cache",
        },
    ),
    Row(
        "`cut_earlier_caches`",
        over(KINDS, lambda kind, apply: prunes(kind, apply, CUT)),
        {
            DEFAULT: "engine/test_cut_caches.py::test_every_step_is_the_oracles",
            STATIC: EXACT_STATIC,
            FP8: "engine/test_quantized.py::test_a_cut_cache_holds_the_rounded_rows_that_stay",
            NONE: "engine/test_cut_caches.py::test_generation_without_a_cache_is_refused",
        },
    ),
    Row(
        "scores from attention before the stage",
        over(KINDS, lambda kind, apply: prunes(kind, apply, reads("fastv"))),
        {DEFAULT: "scorers/test_scorers.py::test_fastv_is_the_last_rows_of_the_attention_map", STATIC: STATIC_READS},
    ),
    Row(
        "scores from attention entering it",
        over(EAGER, lambda kind, apply: prunes(kind, apply, reads({"name": "fastv", "at": "entering"}))),
        {DEFAULT: "engine/test_entering.py::test_the_row_is_the_one_that_the_layer_computes", STATIC: STATIC_READS},
    ),
    Row(
        "scores from the vision tower",
        over(EAGER, lambda kind, apply: prunes(kind, apply, reads("vision_attention"))),
        {DEFAULT: "adapters/test_vision.py::test_generate_keeps_what_a_forward_keeps"},
    ),
    Row(
        "several methods at once (`run.using`)",
        over(KINDS, at_once),
        {"": "engine/test_methods_at_once.py::test_eight_threads_with_methods_of_their_own"},
    ),
)
