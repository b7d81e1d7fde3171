"""Intervals: against closed forms, a bootstrap over clusters, the literature, and the truth in simulations."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest

from tokenprune.stats.clustered import difference, mean, share
from tokenprune.stats.estimate import Z95, Estimate

Interval = Callable[..., Estimate]


def test_clusters_of_one_are_the_ordinary_interval() -> None:
    values = [1.0, 0.0, 1.0, 1.0, 0.0, 1.0, 0.0, 1.0]
    expected = Z95 * math.sqrt(sum((v - 0.625) ** 2 for v in values) / 7 / 8)
    found = mean(values)
    assert found.mean == 0.625
    assert found.half == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("interval", [mean, share, difference])
def test_copies_in_a_cluster_do_not_narrow_the_interval(interval: Interval) -> None:
    values, clusters = [1.0, 0.0, 1.0, 1.0] * 20, list(range(80))
    once, often = interval(values, clusters), interval(values * 10, clusters * 10)
    assert often.half == pytest.approx(once.half, rel=0.02)
    assert often.mean == once.mean


@pytest.mark.parametrize("interval", [mean, share])
def test_it_agrees_with_a_bootstrap_over_clusters(interval: Interval) -> None:
    rng = random.Random(0)
    clusters, values = [], []
    for group in range(200):
        chance = rng.betavariate(2, 1)
        for _ in range(rng.randint(1, 6)):
            clusters.append(group)
            values.append(float(rng.random() < chance))
    found = interval(values, clusters)
    by_group: dict[int, list[float]] = {}
    for value, group in zip(values, clusters, strict=True):
        by_group.setdefault(group, []).append(value)
    means = []
    for _ in range(2000):
        drawn = [by_group[rng.randrange(200)] for _ in range(200)]
        means.append(sum(map(sum, drawn)) / sum(map(len, drawn)))
    centre = sum(means) / len(means)
    spread = math.sqrt(sum((m - centre) ** 2 for m in means) / (len(means) - 1))
    assert found.half == pytest.approx(Z95 * spread, rel=0.06)  # 2,000 resamples: 1.6 % standard error


@pytest.mark.parametrize("interval", [mean, share, difference])
def test_too_little_data_says_so(interval: Interval) -> None:
    assert not interval([1.0, 0.0], ["a", "a"]).known
    assert math.isnan(interval([]).mean)


def test_equal_numbers_without_bounds_say_nothing() -> None:
    found = mean([0.25] * 10)
    assert found.mean == 0.25
    assert not found.known


def test_wilsons_interval_is_that_of_the_literature() -> None:
    """Newcombe (1998), table I: 81 of 263, 15 of 148, 0 of 20, 1 of 29."""
    for (right, samples), expected in {
        (81, 263): (0.2553, 0.3662),
        (15, 148): (0.0624, 0.1605),
        (0, 20): (0.0, 0.1611),
        (1, 29): (0.0061, 0.1718),
    }.items():
        found = share([1.0] * right + [0.0] * (samples - right))
        assert (found.low, found.high) == pytest.approx(expected, abs=5e-5)


@pytest.mark.parametrize("value", [0.0, 0.6, 1.0])
def test_equal_shares_have_an_interval(value: float) -> None:
    """Of 10 equal answers on 10 pictures; of 100 on 10 pictures no narrower, of 100 on 100 narrower."""
    few, same, many = (
        share([value] * count, [number % pictures for number in range(count)])
        for count, pictures in ((10, 10), (100, 10), (100, 100))
    )
    assert few.low <= value <= few.high
    assert few.half > 0.1
    assert (same.low, same.high) == pytest.approx((few.low, few.high))
    assert many.half < few.half / 3
    assert 0 <= few.low < few.high <= 1


def test_one_answer_that_differs_makes_the_interval_no_narrower_below() -> None:
    """Of 1,000 on 100 pictures: the interval moves down with every wrong answer, though it is wide at first."""
    clusters = [number % 100 for number in range(1000)]
    highs = [share([0.0] * wrong + [1.0] * (1000 - wrong), clusters).high for wrong in range(5)]
    assert highs == sorted(highs, reverse=True)
    low = share([1.0] * 1000, clusters).low
    assert 0.95 < low < share([0.0] + [1.0] * 999, clusters).low < 0.99


@pytest.mark.parametrize("value", [-1.0, 0.0, 1.0])
def test_equal_differences_have_an_interval(value: float) -> None:
    found = difference([value] * 8)
    assert found.mean == value
    assert found.low <= value <= found.high
    assert 0.1 < found.half < 0.3
    assert found.low >= -1
    assert found.high <= 1
    assert found.beyond_zero == (value != 0)


def answers(rng: random.Random, chance: float, alike: float, pictures: int) -> list[float]:
    """Four answers per picture; the share ``alike`` of the pictures has four equal ones."""
    out: list[float] = []
    for _ in range(pictures):
        if rng.random() < alike:
            out += [float(rng.random() < chance)] * 4
        else:
            out += [float(rng.random() < chance) for _ in range(4)]
    return out


CLUSTERS = [number // 4 for number in range(160)]


@pytest.mark.parametrize(
    ("chance", "alike"), [(0.5, 0.0), (0.5, 0.5), (0.5, 1.0), (0.95, 0.0), (0.95, 0.5), (0.95, 1.0), (1.0, 0.5)]
)
def test_shares_are_covered_as_often_as_said(chance: float, alike: float) -> None:
    """160 questions on 40 pictures, 400 seeds; and no wider than the interval of 40 independent answers."""
    rng = random.Random(0)
    found = [share(answers(rng, chance, alike, 40), CLUSTERS) for _ in range(400)]
    assert sum(item.low <= chance <= item.high for item in found) / 400 >= 0.925
    widest = share([1.0] * round(40 * chance) + [0.0] * round(40 * (1 - chance))).half
    assert sum(item.half for item in found) / 400 <= 1.05 * widest


@pytest.mark.parametrize(("first", "second"), [(0.5, 0.5), (0.9, 0.8), (1.0, 1.0)])
def test_paired_differences_are_covered_as_often_as_said(first: float, second: float) -> None:
    """Two methods that are right on the same questions with 0.7, on 40 pictures with four questions each."""
    rng = random.Random(1)
    covered = 0
    for _ in range(400):
        values = []
        for _ in CLUSTERS:
            hard = rng.random()
            one, other = (hard if rng.random() < 0.7 else rng.random() for _ in range(2))
            values.append(float(one < first) - float(other < second))
        found = difference(values, CLUSTERS)
        covered += found.low <= first - second <= found.high
    assert covered / 400 >= 0.925


def test_without_clusters_the_paired_interval_is_that_of_agresti_and_min() -> None:
    """32 pairs, 6 with +1 and 2 with -1: the mean of 34 is 4/34, that of the squares 9/34."""
    values = [1.0] * 6 + [-1.0] * 2 + [0.0] * 24
    arm = Z95 * math.sqrt((9 / 34 - (4 / 34) ** 2) / 34)
    found = difference(values)
    assert (found.mean, found.low, found.high) == pytest.approx((4 / 32, 4 / 34 - arm, 4 / 34 + arm))


def test_one_large_cluster_knows_as_little_as_it_is_large() -> None:
    """Of 100 questions on one picture and one on each of three others, nearly all say the same thing."""
    clusters = [0] * 100 + [1, 2, 3]
    found, alone = share([1.0] * len(clusters), clusters), share([1.0] * 4, range(4))
    assert found.low < alone.low
    effective = len(clusters) ** 2 / (100**2 + 3)
    assert found.low == pytest.approx(effective / (effective + Z95**2), abs=1e-6)
