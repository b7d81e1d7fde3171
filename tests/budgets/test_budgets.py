"""Budgets, and the two functions that share them out."""

from __future__ import annotations

import itertools
import random

import pytest
import torch

from tokenprune.budgets.base import Schedule
from tokenprune.budgets.keep import Adaptive, DropAll, KeepCount, KeepRatio, KeepSchedule
from tokenprune.budgets.layer_average import LayerAverage, layer_average
from tokenprune.errors import BudgetError
from tokenprune.ops.topk import apportion, topk_by_group

LLAVA = Schedule((2,), 32)


@pytest.mark.parametrize(("average", "kept"), [(192, 166), (128, 98), (64, 29)])
def test_the_papers_numbers(average: int, kept: int) -> None:
    assert LayerAverage(tokens=average).keep(576, LLAVA) == (kept,)
    assert layer_average(576, (kept,), LLAVA) <= average < layer_average(576, (kept + 1,), LLAVA)


def test_the_ratio_of_the_paper_is_its_128() -> None:
    assert LayerAverage(ratio=0.2222).keep(576, LLAVA) == (98,)


@pytest.mark.parametrize("stages", [(2,), (8, 16, 24), (0, 3)])
@pytest.mark.parametrize("average", [100, 200, 333.3, 500])
def test_layer_average_is_the_largest_that_fits(stages: tuple[int, ...], average: float) -> None:
    schedule = Schedule(stages, 32)
    budget = LayerAverage(ratio=average / 576)
    try:
        kept = budget.keep(576, schedule)
    except BudgetError:
        assert layer_average(576, (1,) * len(stages), Schedule(stages, 32)) > 0
        assert stages[0] * 576 / 32 > average - 40
        return
    assert list(kept) == sorted(kept, reverse=True)
    assert layer_average(576, kept, schedule) <= average + 1e-6


def test_layer_average_by_hand() -> None:
    assert layer_average(100, (40, 10), Schedule((2, 5), 10)) == (2 * 100 + 3 * 40 + 5 * 10) / 10


def test_what_cannot_be_met_is_an_error() -> None:
    with pytest.raises(BudgetError, match=r"cannot be met: 576 visual tokens through the first 2 of 32 layers already"):
        LayerAverage(tokens=36).keep(576, LLAVA)
    assert LayerAverage(tokens=37).keep(576, LLAVA) == (1,)


def test_no_reduction_is_the_whole() -> None:
    assert LayerAverage(tokens=600).keep(576, LLAVA) == (576,)
    assert KeepCount(tokens=600).keep(576, Schedule((2, 4), 32)) == (576, 576)
    assert KeepRatio(ratio=1.0).keep(7, LLAVA) == (7,)


def test_ratios_round_down_and_keep_one() -> None:
    assert KeepRatio(ratio=0.07).keep(100, LLAVA) == (7,)
    assert KeepRatio(ratio=0.33).keep(144, LLAVA) == (47,)
    assert KeepRatio(ratio=0.001).keep(144, LLAVA) == (1,)


def test_stages_fall_geometrically() -> None:
    assert KeepCount(tokens=72).keep(576, Schedule((8, 16, 24), 32)) == (288, 144, 72)


@pytest.mark.parametrize("fields", [{}, {"tokens": 5, "ratio": 0.5}, {"tokens": 0}, {"ratio": 1.5}])
def test_layer_average_needs_one_good_number(fields: dict[str, float]) -> None:
    with pytest.raises(ValueError):
        LayerAverage(**fields)


@pytest.mark.parametrize(
    ("total", "sizes", "expected"),
    [
        (10, [10, 10], [5, 5]),
        (5, [10, 10], [3, 2]),  # equal fractions: the earlier group
        (7, [16, 16, 16], [3, 2, 2]),
        (9, [30, 20, 10], [5, 3, 1]),  # 4.5, 3, 1.5: one left, equal fractions, the earlier
        (3, [100, 1, 1], [1, 1, 1]),
        (10, [100, 1], [9, 1]),
        (1, [5], [1]),
    ],
)
def test_apportion_by_hand(total: int, sizes: list[int], expected: list[int]) -> None:
    assert apportion(total, sizes) == expected


def test_apportion_in_general() -> None:
    rng = random.Random(0)
    for _ in range(500):
        sizes = [rng.randint(1, 50) for _ in range(rng.randint(1, 6))]
        total = rng.randint(len(sizes), sum(sizes))
        quotas = apportion(total, sizes)
        assert sum(quotas) == total
        assert all(1 <= quota <= size for quota, size in zip(quotas, sizes, strict=True))
        shares = [total * size / sum(sizes) for size in sizes]
        if min(shares) >= 1:
            assert all(abs(quota - share) < 1 for quota, share in zip(quotas, shares, strict=True))


@pytest.mark.parametrize(("total", "sizes"), [(1, [2, 2]), (5, [2, 2])])
def test_apportion_refuses_what_cannot_be(total: int, sizes: list[int]) -> None:
    with pytest.raises(ValueError, match="cannot divide"):
        apportion(total, sizes)


def test_topk_by_group_is_sorting() -> None:
    """Against plain sorting per sample and group, with many ties and padding."""
    generator = torch.Generator().manual_seed(0)
    for trial in range(50):
        scores = torch.randint(0, 4, (3, 14), generator=generator).double()
        groups = torch.randint(-1, 3, (3, 14), generator=generator)
        sizes = [[int((row == g).sum()) for g in range(3)] for row in groups]
        quotas = torch.tensor([[size * trial // 50 for size in row] for row in sizes])
        chosen = topk_by_group(scores, groups, quotas)
        for sample, group in itertools.product(range(3), range(3)):
            members = [i for i in range(14) if groups[sample, i] == group]
            order = sorted(members, key=lambda i: (-scores[sample, i].item(), i))
            expected = set(order[: int(quotas[sample, group])])
            assert {i for i in members if chosen[sample, i]} == expected
        assert not chosen[groups < 0].any()


def test_a_schedule_states_every_stage() -> None:
    schedule = Schedule((8, 16, 24), 32)
    assert KeepSchedule(ratios=(0.5, 0.25, 0.125)).keep(576, schedule) == (288, 144, 72)
    assert KeepSchedule(tokens=(300, 200, 110)).keep(576, schedule) == (300, 200, 110)
    assert KeepSchedule(tokens=(300, 200, 110)).keep(250, schedule) == (250, 200, 110)
    assert KeepSchedule(ratios=(0.5, 0.01, 0.01)).keep(10, schedule) == (5, 1, 1)
    with pytest.raises(BudgetError, match="a schedule of 2 stages for pruning before 3 layers"):
        KeepSchedule(tokens=(300, 200)).keep(576, schedule)
    for wrong in ({}, {"ratios": (0.5,), "tokens": (3,)}, {"ratios": (0.2, 0.5)}, {"tokens": (0,)}):
        with pytest.raises(ValueError, match=r"ratios|tokens|every stage"):
            KeepSchedule(**wrong)  # type: ignore[arg-type]


def test_nothing_and_as_many_as_the_pruner_likes() -> None:
    assert DropAll().keep(576, Schedule((2, 9), 32)) == (0, 0)
    assert Adaptive().keep(576, LLAVA) == (1,)


def test_visual_tokens_per_layer() -> None:
    assert Schedule((1, 3), 5).per_layer(9, (4, 2)) == [9, 4, 4, 2, 2]


def test_the_largest_count() -> None:
    """Only budgets that state tokens have one."""
    for budget in (KeepCount(tokens=9), LayerAverage(tokens=9), KeepSchedule(tokens=(9, 4))):
        assert budget.largest_count == 9
    for other in (KeepSchedule(ratios=(0.5, 0.2)), KeepRatio(ratio=0.5), DropAll()):
        assert other.largest_count is None
