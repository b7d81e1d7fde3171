"""The collapsed layer: the plateau is found where it was planted, and nothing where there is none."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tokenprune.selectors.base import SelectorContext
from tokenprune.selectors.entropy_collapse import EntropyCollapse
from tokenprune.selectors.entropy_profile import EntropyProfile, detect_collapse
from tokenprune.selectors.plateau import find_plateau, largest_drop

DIGITS = Path(__file__).parents[2] / "benchmarks" / "results" / "digits" / "profile.json"


def profile(*curves: list[float], copies: int = 1) -> EntropyProfile:
    return EntropyProfile(family="toy", num_layers=len(curves[0]), curves=tuple(map(tuple, curves)) * copies)


def noisy(shape: list[float], samples: int = 8, noise: float = 0.02, seed: int = 0) -> EntropyProfile:
    rng = random.Random(seed)
    return profile(*([value + rng.gauss(0, noise) for value in shape] for _ in range(samples)))


@pytest.mark.parametrize("length", [2, 4])
@pytest.mark.parametrize("descent", [1, 2, 3])
@pytest.mark.parametrize("start", [1, 3, 5])
def test_a_planted_plateau_is_found_where_it_was_planted(start: int, descent: int, length: int) -> None:
    """High layers, a descent over one or more layers, the plateau, and a rise behind it."""
    steps = [4 - 3.6 * step**0.5 / descent**0.5 for step in range(1, descent)]
    found = find_plateau(noisy([4.0] * start + steps + [0.4] * length + [2.0] * 3))
    first = start + descent - 1
    assert (found.drop, found.first, found.last) == (start, first, first + length - 1)
    assert found.agreement == 1
    assert found.sentence.startswith(f"low plateau from layer {first} on: layers {first} to {first + length - 1},")


def test_the_digits_models_plateau_begins_behind_its_drop() -> None:
    """Means at the inputs of layers 0 to 10: 1.79 1.47 0.62 0.30 0.32 0.34 0.36 0.39 0.43 0.64 1.64."""
    curves = EntropyProfile.load(DIGITS)
    found = find_plateau(curves)
    assert detect_collapse(curves).layer == found.drop == 2
    assert (found.first, found.last) == (3, 8)
    for left_out in range(len(curves.curves)):  # no single picture decides
        rest = curves.curves[:left_out] + curves.curves[left_out + 1 :]
        again = find_plateau(curves.model_copy(update={"curves": rest}))
        assert (again.drop, again.first, again.last) == (2, 3, 8)


def test_a_single_lower_layer_behind_it_does_not_hide_a_plateau() -> None:
    """The shape of the clip model's means."""
    found = find_plateau(profile([3.07, 2.93, 2.87, 2.86, 2.49, 2.50, 2.47, 2.30], copies=3))
    assert (found.drop, found.first, found.last) == (4, 4, 7)
    assert found.floor == pytest.approx(2.47)


@pytest.mark.parametrize(
    ("curve", "words"),
    [
        ([1.0], "the model has one layer"),
        ([1.0, 1.5, 2.0, 2.5], "the entropy never falls"),
        ([2.0, 2.0, 2.0], "the entropy never falls"),
        ([4.0, 4.0, 4.0, 1.0], "no two layers follow the largest mean drop, before layer 3"),
        ([4.0, 4.0, 3.9, 3.9, 3.9], "the entropy falls by less than 10 %"),
        ([8.0 - layer for layer in range(8)], "the entropy falls on"),
        ([4.0, 1.0, 3.9, 3.8, 3.9, 3.8], "the entropy falls by less than 10 %"),  # one low layer
    ],
)
def test_no_plateau_and_why(curve: list[float], words: str) -> None:
    found = find_plateau(profile(curve, copies=4))
    assert (found.first, found.last) == (None, None)
    assert found.sentence.startswith("no plateau found: ")
    assert words in found.sentence


def test_samples_that_disagree_are_none() -> None:
    early = [4.0, 4.0, 2.4, 0.4, 0.4, 0.4, 0.4, 0.4, 3.0]
    late = [4.0, 4.0, 1.6, 1.6, 1.6, 1.6, 0.4, 0.4, 3.0]
    assert find_plateau(profile(early, copies=4)).first == 3
    found = find_plateau(profile(*[early] * 2, *[late] * 2))
    assert found.first is None
    assert "fewer than 75 % of the samples agree" in found.sentence
    assert find_plateau(profile(*[early] * 2, *[late] * 2), min_agreement=0.5).first is not None


def test_the_first_of_equal_drops_counts() -> None:
    assert largest_drop([3.0, 2.0, 1.0, 1.0]) == 1


def test_the_rule_prunes_behind_the_collapsed_layer() -> None:
    """What is observed is the layer before the pruned one: it must be the first collapsed one."""
    curves = EntropyProfile.load(DIGITS)
    model = SelectorContext("llava", 30, measure_entropy=lambda: curves)
    choice = EntropyCollapse(rule="plateau").select(model)
    assert choice.layers == (find_plateau(curves).first + 1,) == (4,)  # type: ignore[operator]
    assert choice.reason == find_plateau(curves).sentence
    assert EntropyCollapse().select(model).layers == (2,)


def test_without_a_plateau_the_next_source_decides_and_says_why() -> None:
    falling = profile([8.0 - layer for layer in range(8)], copies=4)
    model = SelectorContext("toy", 8, measure_entropy=lambda: falling)
    choice = EntropyCollapse(rule="plateau", fallback=3).select(model)
    assert choice.layers == (3,)
    assert choice.reason.startswith("no plateau found: the entropy falls on")
    assert choice.reason.endswith("fell back to layer 3")
