"""Intervals: against the closed form, and against a bootstrap over clusters."""

from __future__ import annotations

import math
import random

import pytest
from tokenprune.experiment.stats import Z95, Estimate, clustered


def test_clusters_of_one_are_the_ordinary_interval() -> None:
    values = [1.0, 0.0, 1.0, 1.0, 0.0, 1.0, 0.0, 1.0]
    mean = sum(values) / 8
    expected = Z95 * math.sqrt(sum((v - mean) ** 2 for v in values) / 7 / 8)
    found = clustered(values, range(8))
    assert found.mean == mean
    assert found.half == pytest.approx(expected, rel=1e-12)


def test_copies_in_a_cluster_do_not_narrow_the_interval() -> None:
    values, clusters = [1.0, 0.0, 1.0, 1.0], ["a", "b", "c", "d"]
    once = clustered(values, clusters)
    often = clustered(values * 10, clusters * 10)
    assert often.half == pytest.approx(once.half, rel=1e-12)
    assert often.mean == once.mean


def test_it_agrees_with_a_bootstrap_over_clusters() -> None:
    rng = random.Random(0)
    clusters, values = [], []
    for group in range(200):
        chance = rng.betavariate(2, 1)
        for _ in range(rng.randint(1, 6)):
            clusters.append(group)
            values.append(float(rng.random() < chance))
    found = clustered(values, clusters)
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


def test_too_little_data_says_so() -> None:
    assert clustered([1.0, 0.0], ["a", "a"]).half == math.inf
    assert math.isnan(clustered([], []).mean)


def test_the_drawn_interval_is_finite_and_within_all_there_is() -> None:
    assert Estimate(0.9, 0.05).error_bars == pytest.approx((0.05, 0.05))
    assert Estimate(0.9, float("inf")).error_bars == pytest.approx((0.9, 0.1))
