"""Frames of a sample: numbers, the same cell in an earlier frame, and the best tokens of every image."""

from __future__ import annotations

import pytest
import torch

from tokenprune.ops.frames import (
    best_of_each,
    best_overall,
    chains,
    cosine_to,
    earlier,
    frame_sizes,
    number_frames,
)


def test_frames_are_counted_through_the_sample() -> None:
    frame = torch.tensor([[0, 0, 1, -1, 0, 1, 2, -1], [0, 0, 0, 0, -1, -1, -1, -1]])
    groups = torch.tensor([[0, 0, 0, 0, 1, 1, 2, -1], [0, 1, 2, 2, -1, -1, -1, -1]])
    assert number_frames(frame, groups, 3).tolist() == [[0, 0, 1, -1, 2, 3, 6, -1], [0, 1, 2, 2, -1, -1, -1, -1]]


@pytest.mark.parametrize("seed", range(8))
def test_the_same_cell_earlier(seed: int) -> None:
    """Frames of two sizes in any order, cells missing, each token with a lag of its own."""
    noise = torch.Generator().manual_seed(seed)
    rows = []
    for frame in range(6):
        side = (2, 3) if seed % 2 and frame in (2, 3) else (3, 3)
        rows += [(frame, r, c) for r in range(side[0]) for c in range(side[1])]
    rows += [(-1, -1, -1)] * 3
    rows = [rows[i] for i in torch.randperm(len(rows), generator=noise).tolist()]
    lag = torch.randint(0, 4, (len(rows),), generator=noise)
    shape = {f: max((r, c) for frame, r, c in rows if frame == f) for f in range(6)}
    expected = []
    for (frame, r, c), back in zip(rows, lag.tolist(), strict=True):
        same = frame >= back > 0 and shape[frame] == shape[frame - back]
        expected.append(rows.index((frame - back, r, c)) if same else -1)
    grid = torch.tensor(rows)[None]
    sizes = frame_sizes(grid[..., 0], grid)
    assert all(sizes[0, i].tolist() == [shape[f][0] + 1, shape[f][1] + 1] for i, (f, *_) in enumerate(rows) if f >= 0)
    assert earlier(grid[..., 0], sizes, grid, lag[None]).tolist() == [expected]


@pytest.mark.parametrize("seed", range(8))
def test_chains_of_cells(seed: int) -> None:
    """Some tokens are gone: the chain goes on with the next frame that has the cell and the size."""
    noise = torch.Generator().manual_seed(seed)
    rows = []
    for frame in range(6):
        side = (2, 3) if seed % 2 and frame in (2, 3) else (3, 3)
        rows += [(frame, r, c, *side) for r in range(side[0]) for c in range(side[1])]
    rows = [rows[i] for i in torch.randperm(len(rows), generator=noise).tolist()[:30]] + [(-1,) * 5] * 3
    order, follows = chains(*(torch.tensor(rows)[None, :, part] for part in (0, slice(3, 5), slice(0, 3))))
    assert sorted(order[0].tolist()) == list(range(33))
    before = {}
    for place, (token, after) in enumerate(zip(order[0].tolist(), follows[0].tolist(), strict=True)):
        if after:
            before[token] = int(order[0, place - 1])
    for i, (frame, r, c, *side) in enumerate(rows):
        same = [j for j, other in enumerate(rows) if list(other[1:]) == [r, c, *side] and -1 < other[0] < frame]
        assert before.get(i) == (max(same, key=lambda j: rows[j][0]) if same else None)


def test_best_overall_gives_every_image_one() -> None:
    scores = torch.tensor([[9.0, 8.0, 7.0, 1.0, 1.0, 3.0, 50.0], [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]])
    groups = torch.tensor([[0, 0, 0, 1, 1, 2, -1], [0, 0, 0, 0, 1, 1, 1]])
    first = best_of_each(scores, groups, 3)
    assert first.int().tolist() == [[1, 0, 0, 1, 0, 1, 0], [1, 0, 0, 0, 1, 0, 0]]
    kept = best_overall(scores, first, groups >= 0, torch.tensor([4, 3]))
    assert kept.int().tolist() == [[1, 1, 0, 1, 0, 1, 0], [1, 1, 0, 0, 1, 0, 0]]


def test_nothing_waits_for_the_device() -> None:
    """The meta device has no values: whatever asks for one raises."""
    grid = torch.empty(2, 12, 3, dtype=torch.long, device="meta")
    states = torch.empty(2, 12, 5, device="meta")
    groups = torch.empty(2, 12, dtype=torch.long, device="meta")
    frames = number_frames(grid[..., 0], groups, 3)
    before = earlier(frames, frame_sizes(frames, grid), grid, torch.ones_like(frames))
    assert chains(frames, frame_sizes(frames, grid), grid)[0].shape == (2, 12)
    scores = cosine_to(states, before)
    first = best_of_each(scores, groups, 3)
    assert best_overall(scores, first, groups >= 0, groups.sum(1)).shape == (2, 12)
