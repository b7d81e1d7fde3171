"""Videos and several images as frames: a pruner's choice in a model against a literal function, for every sample."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tests.support.literal import Recording, record
from tokenprune.pruners.base import Pruner
from tokenprune.testing import make_context

Place = tuple[int, int, int]

#: (frame, row, column) of the tokens of one tiny video, in order; None is a separator.
VIDEOS: dict[str, list[Place | None]] = {
    "qwen2_5_vl": [],
    "qwen3_vl": [],
    "llava_next_video": [(f, r, c) for f in range(3) for r in range(2) for c in range(2)],
    "llava_onevision": [*[(f, r, c) for f in range(3) for r in range(2) for c in range(2)], None],
    "video_llava": [place for f in range(4) for place in (None, *[(f, r, c) for r in range(4) for c in range(4)])],
}

Literal = Callable[[list[Tensor], list[Place | None], list[int], Any], list[int]]
"""(states, (frame, row, column) of each token, image of each token, count) -> numbers of the kept tokens."""


def places_of(name: str, recording: Recording) -> list[Place | None]:
    """Where the tokens of a video lie; of Qwen by the grid that it is given."""
    if VIDEOS[name]:
        return VIDEOS[name]
    frames, rows, columns = recording.inputs["video_grid_thw"][0].tolist()
    return [(f, r, c) for f in range(frames) for r in range(rows // 2) for c in range(columns // 2)]


def method(pruner: str, count: int | None) -> dict[str, Any]:
    """Prune before layer 0 to `count` tokens; None: the pruner decides."""
    budget = {"name": "adaptive"} if count is None else {"name": "keep_count", "tokens": count}
    return {"layers": {"name": "fixed", "layers": [0]}, "pruner": pruner, "budget": budget}


def compare_on_videos(literal: Literal, pruner: str, name: str, count: int | None) -> None:
    """Ragged batches, padded on the left; with separators and class tokens."""
    recording = record(name, "video")
    expected = []
    for sample, images in enumerate(recording.image_positions):
        where = [position for image in images for position in image]
        states = [recording.layer_inputs[0][sample, position] for position in where]
        kept = literal(states, places_of(name, recording), [0] * len(where), count)
        expected.append([where[i] for i in kept])
    assert recording.kept(method(pruner, count)) == expected


def compare_on_images(literal: Literal, pruner: str, name: str, count: int | None) -> None:
    """Exact counts per sample, at least one token per image."""
    recording = record(name, "multi", batch=3)
    expected = []
    for sample, images in enumerate(recording.image_positions):
        where = [position for image in images for position in image]
        coordinates: list[Place | None] = [(0, i // 4, i % 4) for _ in images for i in range(16)]
        number = [image for image in range(len(images)) for _ in range(16)]
        states = [recording.layer_inputs[0][sample, position] for position in where]
        kept = literal(states, coordinates, number, count)
        expected.append([where[i] for i in kept])
    assert recording.kept(method(pruner, count)) == expected


def chosen(states: Tensor, frames: list[int], side: int, count: int | None, pruner: Pruner) -> list[list[int]]:
    """A pruner on bare tensors: samples of one video each, with so many frames."""
    width = states.shape[1]
    sizes = [number * side * side for number in frames]
    real = torch.arange(width) < torch.tensor(sizes)[:, None]
    index = torch.arange(width)
    grid = torch.stack([index // side**2, index // side % side, index % side], -1).expand(len(states), -1, -1)
    fewest = 1 if count is None else count
    ctx = make_context(states, real, keep=fewest, grid=grid, open_ended=count is None)
    keep = pruner.select(ctx).keep
    assert not any(bool(bad.any()) for bad, _ in ctx.checks)
    return [row.nonzero()[:, 0].tolist() for row in keep]


def assert_no_transfer(pruner: Pruner, open_ended: bool) -> None:
    """The meta device has no values: whatever asks for one raises."""
    ctx = make_context(
        torch.empty(2, 18, 8, device="meta"),
        sizes=[[9, 9], [9, 9]],
        keep=3,
        grid=torch.empty(2, 18, 3, dtype=torch.long, device="meta"),
        open_ended=open_ended,
    )
    assert pruner.select(ctx).keep.shape == (2, 18)
