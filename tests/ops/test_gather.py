"""Whole entries by index, against plain loops."""

from __future__ import annotations

import pytest
import torch

from tokenprune.ops.gather import marked_first, rows_at, with_rows


@pytest.mark.parametrize("rest", [(), (4,), (2, 3)])
def test_entries_of_each_sample(rest: tuple[int, ...]) -> None:
    states = torch.arange(3 * 5 * 24).view(3, 5, 24)[:, :, : torch.Size(rest).numel()].reshape(3, 5, *rest)
    index = torch.tensor([[4, 0, 4], [1, 2, 3], [0, 0, 0]])
    expected = torch.stack([row[list(places)] for row, places in zip(states, index.tolist(), strict=True)])
    assert torch.equal(rows_at(states, index), expected)


def test_entries_of_a_view() -> None:
    states = torch.randn(2, 9, 4)[:, ::2]
    index = torch.tensor([[4, 1], [0, 3]])
    assert torch.equal(rows_at(states, index), torch.stack([states[0, [4, 1]], states[1, [0, 3]]]))


def test_the_copy_is_not_a_view() -> None:
    states = torch.zeros(1, 3, 2)
    rows_at(states, torch.arange(3)[None]).add_(1)
    assert states.abs().sum() == 0


def test_other_entries_are_unchanged() -> None:
    states, rows = torch.randn(2, 4, 3), torch.randn(2, 2, 3)
    index = torch.tensor([[3, 0], [1, 2]])
    expected = states.clone()
    for sample in range(2):
        for place, row in zip(index[sample].tolist(), rows[sample], strict=True):
            expected[sample, place] = row
    before = states.clone()
    assert torch.equal(with_rows(states, index, rows), expected)
    assert torch.equal(states, before)


def test_marked_entries_come_first_and_in_order() -> None:
    mask = torch.tensor([[False, True, False, True], [False, False, True, False]])
    place, is_marked = marked_first(mask, 2)
    assert place.tolist() == [[1, 3], [2, 0]]
    assert is_marked.tolist() == [[True, True], [True, False]]
    place, is_marked = marked_first(mask, 9)
    assert place.tolist() == [[1, 3, 0, 2], [2, 0, 1, 3]]
    assert is_marked.sum(1).tolist() == [2, 1]
