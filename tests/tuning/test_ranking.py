"""The order of candidates, ties, and what is said about them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from tests.tuning.planted import Place, method
from tokenprune.engine.trials.fidelity import Fidelity
from tokenprune.errors import ConfigError
from tokenprune.stats.bootstrap import RESAMPLES, bootstrap
from tokenprune.tuning.ranking import Measured, Ranking, pareto_front, rank
from tokenprune.tuning.report import SHOWN, shown
from tokenprune.tuning.sentences import sentence

CHANCE = {"name": "random"}
NOISE = torch.randn(32, generator=torch.Generator().manual_seed(0)) / 10


def measured(
    name: str, losses: Sequence[float] | torch.Tensor, average: float = 8.0, scorer: Any = None, left: int | None = None
) -> Measured:
    loss = torch.as_tensor(losses)
    fidelity = Fidelity(1 - loss, loss, loss, torch.full_like(loss, average), torch.full_like(loss, average / 16))
    return Measured(name, "named", method(scorer or Place(), name), fidelity, loss, left)


def chance(losses: torch.Tensor, name: str = "random: layer 0", left: int | None = None) -> Measured:
    return measured(name, losses, scorer=CHANCE, left=left)


def ranking(*items: Measured, **refused: str) -> Ranking:
    return rank("layer_average 0.5", items, refused, 32)


GOOD = measured("good", 0.3 + NOISE)
SAME = measured("same", 0.301 + NOISE.flip(0))
WORSE = measured("worse", 0.5 + NOISE)


def test_the_lowest_loss_of_those_that_saw_all_wins() -> None:
    early = measured("early", 0.01 + NOISE[:8], left=8)  # lucky on the first samples: it cannot have left so
    found = ranking(early, WORSE, SAME, chance(0.9 + NOISE), GOOD)
    assert [row.name for row in found.ranked] == ["good", "same", "worse", "random: layer 0", "early"]
    assert found.best.difference.mean == 0
    assert [row.name for row in found.within_noise] == ["same"]
    assert found.beats_random


def test_differences_are_paired() -> None:
    """Large equal noise cancels: the intervals of the losses overlap, that of the difference does not hold zero."""
    loud = 3 * NOISE
    found = ranking(measured("a", 1 + loud), measured("b", 1.02 + loud + (NOISE - NOISE.mean()) / 100))
    a, b = found.ranked
    assert b.loss.low < a.loss.high
    assert not b.tied
    assert b.difference.mean == pytest.approx(0.02, abs=1e-6)


def test_a_cheaper_one_that_is_as_good_wins() -> None:
    """Cheaper is by a tenth; as good is by one standard error, which is less than what counts as noise."""
    cheap, about = measured("cheap", SAME.losses, average=7.2), measured("about", SAME.losses, average=7.4)
    assert ranking(GOOD, cheap).best.name == "cheap"
    assert ranking(GOOD, about).best.name == "good"
    assert ranking(GOOD, measured("cheap", WORSE.losses, average=4)).best.name == "good"
    error = float((NOISE.flip(0) - NOISE).double().std(correction=0)) / 32**0.5
    above = measured("above", 0.3 + 1.5 * error + NOISE.flip(0), average=4)
    assert ranking(GOOD, above).best.name == "good"
    assert ranking(GOOD, above).ranked[1].tied
    tied = ranking(GOOD, cheap).ranked[1]
    assert tied.tied
    assert tied.difference.mean < 0


def test_the_sentence() -> None:
    others = [measured(f"m{n}", GOOD.losses + NOISE.roll(n + 1) / 100) for n in range(3)]
    text = sentence(ranking(GOOD, WORSE, *others, chance(0.9 + NOISE)), "divergence")
    assert text.startswith("good (agreement 69.9 %, divergence 0.3007 nats, 32 samples); ")
    assert "three others are within the noise (" in text
    assert "random: layer 0 loses by 0.6000 ± <0.0001 nats" in text
    assert text.count("\n") == 0
    left = sentence(ranking(GOOD, WORSE, chance(0.9 + 1.1 * NOISE[:8], left=8)), "agreement")
    assert "no other is within the noise" in left
    assert "loses by 59.5 ± 0.6 points on the 8 samples that it saw." in left


def test_nothing_beats_random() -> None:
    near = ranking(GOOD, chance(0.301 + NOISE.flip(0)))
    assert not near.beats_random
    text = sentence(near, "divergence")
    assert text.startswith("nothing beats random at equal cost: good has the lowest loss")
    assert "random: layer 0 loses only" in text
    itself = ranking(WORSE, chance(0.3 + NOISE))
    assert not itself.beats_random
    assert sentence(itself, "divergence").startswith("nothing beats random at equal cost: random: layer 0 itself")


def test_a_cheaper_one_is_not_said_to_have_the_lowest_loss() -> None:
    itself = ranking(GOOD, measured("random: layer 0", SAME.losses, average=4, scorer=CHANCE))
    assert sentence(itself, "divergence").startswith(
        "nothing beats random at equal cost: random: layer 0 itself is cheaper than the lowest loss and as good ("
    )
    near = ranking(GOOD, measured("cheap", SAME.losses, average=4), chance(0.3005 + NOISE.roll(3)))
    text = sentence(near, "divergence")
    assert "cheap is cheaper than the lowest loss and as good (" in text
    assert "random: layer 0 differs by 0.000 ± " in text  # never -0


def test_one_of_several_random_ones_is_enough() -> None:
    several = ranking(GOOD, chance(0.9 + NOISE, "early"), chance(0.301 + NOISE.flip(0), "late"))
    assert not several.beats_random
    assert "late loses only" in sentence(several, "divergence")


def test_random_that_could_not_run_is_said() -> None:
    alone = ranking(GOOD, random="it cannot")
    assert not alone.beats_random
    assert "random could not run" in sentence(alone, "divergence")


def test_no_candidate() -> None:
    with pytest.raises(ConfigError, match="no candidate can run; the first, a: why"):
        ranking(a="why")
    with pytest.raises(ConfigError, match="no candidate can run; the first, a: why"):
        ranking(chance(0.9 + NOISE), a="why")


def test_the_front() -> None:
    items = [
        measured("cheap", 0.5 + NOISE, average=4),
        measured("dear", 0.1 + NOISE, average=10),
        measured("worse", 0.6 + NOISE, average=5),
        measured("middle", 0.3 + NOISE, average=6),
        measured("gone", 0.01 + NOISE[:8], average=3, left=8),
    ]
    assert [row.name for row in pareto_front(ranking(*items).ranked)] == ["cheap", "middle", "dear"]


def test_the_picture_shows_the_best_and_random() -> None:
    many = [measured(f"m{n}", 0.3 + n / 10 + NOISE) for n in range(20)]
    rows = shown(ranking(*many, chance(9 + NOISE)))
    assert len(rows) == SHOWN + 1
    assert rows[-1].random
    assert rows[0].name == "m0"


def test_intervals_hold_the_mean_and_are_reproducible() -> None:
    values = torch.rand(64, generator=torch.Generator().manual_seed(1))
    interval = bootstrap(values)
    assert interval.low < interval.mean < interval.high
    assert interval == bootstrap(values)
    assert interval != bootstrap(values, seed=1)
    expected = 1.96 * values.std().item() / 8
    assert interval.high - interval.mean == pytest.approx(expected, rel=0.2)
    assert bootstrap(values[:1]).high == float("inf")
    assert RESAMPLES == 2000


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    noise = torch.Generator().manual_seed(2)
    inside = 0
    for _ in range(200):
        interval = bootstrap(torch.randn(64, generator=noise) + 0.5)
        inside += interval.low <= 0.5 <= interval.high
    assert 180 <= inside <= 198
