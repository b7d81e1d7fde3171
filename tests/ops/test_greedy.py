"""The end of a greedy loop: picks become a mask."""

from __future__ import annotations

import torch

from tokenprune.ops.greedy import mark_picks


def test_picks_after_the_quota_do_not_count() -> None:
    picks = [torch.tensor([[2], [1]]), torch.tensor([[0], [0]]), torch.tensor([[3], [1]])]
    marked = mark_picks(picks, torch.tensor([3, 1]), 4)
    assert marked.tolist() == [[True, False, True, True], [False, True, False, False]]


def test_no_picks() -> None:
    assert not mark_picks([], torch.tensor([0, 0]), 4).any()
