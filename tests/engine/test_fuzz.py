"""Random uses of the engine against the oracle: 200 here, 5,000 with `make fuzz`. A failure prints the smallest one."""

from __future__ import annotations

import os
from typing import Any

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from tests.support.fuzzing import Trial, judge
from tests.support.matrix import ONE_IMAGE_BEAMS
from tests.support.tiny import CASES, CORE
from tests.support.turns import SEEN_BY_TURNS

#: `make fuzz` asks for more, and for others in every run.
MANY = int(os.environ.get("FUZZ_TRIALS", "200"))


@st.composite
def trials(draw: Any) -> Trial:
    """A use that the engine follows, or refuses for a reason that the trial shows."""
    family = draw(st.sampled_from(CORE))
    case = CASES[family]
    renumbered = draw(st.booleans()) and family != "gemma3"
    way = draw(st.sampled_from(["forward", "greedy", "sample", "beam", "lookup", "no cache", "two turns", "pictures"]))
    if renumbered and way not in ("greedy", "sample", "lookup"):  # judged for the steps of one generation
        way = "greedy"
    layers = (0,) if renumbered else tuple(sorted(draw(st.sets(st.integers(0, 3), min_size=1, max_size=3))))
    variants = [variant for variant in case.variants if variant not in ("text", "video")]
    if way == "beam" and ONE_IMAGE_BEAMS:
        variants = ["image"]
    cached = way not in ("forward", "no cache") and not (way == "pictures" and family in SEEN_BY_TURNS)
    return Trial(
        family=family,
        attention=draw(st.sampled_from(case.attentions)),
        padding=draw(st.sampled_from(["none", "left"])),
        variant=draw(st.sampled_from(variants)),
        batch=draw(st.integers(1, 3)),
        seed=draw(st.integers(0, 5)),
        layers=layers,
        # the others read the layer before
        scorer="random" if layers[0] == 0 else draw(st.sampled_from(["random", "norm", "matrix_entropy", "fastv"])),
        tokens=draw(st.none() | st.integers(1, 12)),
        ratio=draw(st.sampled_from([0.1, 0.33, 0.7, 1.0])),
        cut=cached and not renumbered and draw(st.booleans()),
        renumbered=renumbered,
        static=way in ("greedy", "sample", "beam", "two turns", "pictures") and draw(st.booleans()),
        half=way in ("forward", "greedy") and not renumbered and draw(st.integers(0, 9)) == 0,
        way=way,
    )


@pytest.mark.slow
@settings(
    max_examples=MANY,
    derandomize=MANY == 200,
    deadline=None,
    database=None,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)
@given(trial=trials())
def test_every_use_is_the_oracle(trial: Trial) -> None:
    refused = judge(trial)
    event("refused" if refused else f"{trial.way}, {'static' if trial.static else 'dynamic'} cache")
