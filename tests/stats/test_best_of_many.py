"""The correction for having picked the best of many: by hand, and on candidates whose worth is known."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import pytest
import torch

from tokenprune.stats.bootstrap import CHOICES, corrected
from tokenprune.stats.clustered import share


def best(values: list[list[float]]) -> object:
    def worth(drawn: Sequence[int]) -> list[float]:
        means = [statistics.fmean(row[sample] for sample in drawn) for row in values]
        return values[means.index(max(means))]

    return worth


def test_a_single_candidate_keeps_its_mean() -> None:
    values = [1.0] * 20 + [0.0] * 12
    found = corrected(32, lambda drawn: values)
    assert found == share(values)
    assert found.mean == 20 / 32


def test_the_choice_is_judged_on_what_it_did_not_see() -> None:
    """Two candidates and three samples, resample by resample."""
    values = [[1.0, 1.0, 0.0], [0.0, 1.0, 1.0]]
    draws = torch.randint(3, (CHOICES, 3), generator=torch.Generator().manual_seed(0)).tolist()
    left_out: dict[int, list[float]] = {0: [], 1: [], 2: []}
    for drawn in draws:
        first, second = (sum(row[sample] for sample in drawn) for row in values)
        chosen = values[0] if first >= second else values[1]
        for sample in (0, 1, 2):
            if sample not in drawn:
                left_out[sample].append(chosen[sample])
    expected = statistics.fmean(statistics.fmean(left_out[sample]) for sample in (0, 1, 2))
    assert corrected(3, best(values)).mean == pytest.approx(expected, abs=1e-12)  # type: ignore[arg-type]


def test_the_gain_of_having_been_picked_goes() -> None:
    """Forty candidates that are right half of the time by chance: the best looks like 70 % or so, and is worth 50."""
    corrections, promises = [], []
    for seed in range(20):
        noise = torch.Generator().manual_seed(seed)
        values = (torch.rand(40, 32, generator=noise) < 0.5).double().tolist()
        promises.append(max(statistics.fmean(row) for row in values))
        corrections.append(corrected(32, best(values)).mean)  # type: ignore[arg-type]
    assert statistics.fmean(promises) > 0.68
    assert abs(statistics.fmean(corrections) - 0.5) < 0.03


def test_a_candidate_that_is_truly_best_keeps_its_lead() -> None:
    noise = torch.Generator().manual_seed(0)
    good = (torch.rand(1, 64, generator=noise) < 0.9).double()
    bad = (torch.rand(9, 64, generator=noise) < 0.3).double()
    values = torch.cat([bad, good]).tolist()
    assert corrected(64, best(values)).mean == pytest.approx(statistics.fmean(values[-1]), abs=1e-9)  # type: ignore[arg-type]


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_samples_say_nothing(count: int) -> None:
    assert math.isnan(corrected(count, lambda drawn: [1.0] * count).mean)
