"""Images and videos as items: what the families' adapters share.

A family says how many tokens its items are (:meth:`VisualAdapter.sizes`) and where the tokens of one item lie
(:meth:`VisualAdapter.places`); which sample an item belongs to, and the order of images and videos within it,
follows from the placeholder tokens.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from tokenprune.adapters.base import Adapter, VisualLayout

Kind: TypeAlias = Literal["image", "video"]
KINDS: tuple[Kind, ...] = ("image", "video")

#: Tokens of an item, and its number among all of its kind in the batch (None where the arguments do not list them).
Part: TypeAlias = tuple[int, int | None]

#: Arguments that hold the pixels of a kind.
PIXELS: dict[Kind, tuple[str, ...]] = {
    "image": ("pixel_values", "pixel_values_images"),
    "video": ("pixel_values_videos",),
}


@dataclass(frozen=True)
class Item:
    """One image or video of one sample.

    Attributes:
        kind: ``image`` or ``video``.
        index: Its number among all of its kind in the batch, or None where the arguments do not list them.
        sample: The sample that it belongs to.
        positions: Sequence positions of its tokens, long, on the host.
    """

    kind: Kind
    index: int | None
    sample: int
    positions: Tensor

    @property
    def size(self) -> int:
        """How many tokens it is."""
        return len(self.positions)


class VisualAdapter(Adapter):
    """Base of the families whose arguments tell images and videos apart."""

    def sizes(self, call: Mapping[str, Any], kind: Kind, count: int) -> list[int] | None:
        """Tokens of every item of a kind, over the whole batch, in order.

        Args:
            call: The arguments of the model's forward, by name.
            kind: ``image`` or ``video``.
            count: Placeholder tokens of that kind in the batch.

        Returns:
            The sizes; None when the arguments do not tell, and every unbroken run of tokens is taken as one item.
        """
        return uniform_sizes(call, kind, count)

    def places(self, call: Mapping[str, Any], item: Item) -> Tensor | None:
        """(frame, row, column) of each token of an item, long ``[size, 3]``; None when the family cannot say."""
        return square(item.size)

    def parts(self, call: Mapping[str, Any], kind: Kind, positions: Sequence[Tensor]) -> list[list[Part]]:
        """Size and number of a kind's items, by sample.

        Args:
            call: The arguments of the model's forward, by name.
            kind: ``image`` or ``video``.
            positions: Where each sample has placeholders of that kind, long, on the host.
        """
        sizes = self.sizes(call, kind, sum(map(len, positions)))
        dealt = None if sizes is None else deal(sizes, list(map(len, positions)))
        if sizes is None or dealt is None:
            return [[(run, None) for run in run_lengths(where)] for where in positions]
        return [[(sizes[index], index) for index in indices] for indices in dealt]

    def group_sizes(self, call: Mapping[str, Any], mask: Tensor) -> list[list[int]] | None:
        """See :meth:`tokenprune.adapters.base.Adapter.group_sizes`."""
        return [[item.size for item in items] for items in self.items(call, mask)]

    def grid(self, call: Mapping[str, Any], layout: VisualLayout) -> Tensor | None:
        """See :meth:`tokenprune.adapters.base.Adapter.grid`."""
        grid = torch.full((*layout.mask.shape, 3), -1, dtype=torch.long)
        for sample, items in enumerate(self.items(call, layout.mask)):
            for item in items:
                places = self.places(call, item)
                if places is not None:
                    grid[sample, item.positions] = places
        return grid.to(layout.mask.device)

    def items(self, call: Mapping[str, Any], mask: Tensor) -> list[list[Item]]:
        """The images and videos of every sample, in the order of their first tokens.

        Args:
            call: The arguments of the model's forward, by name.
            mask: The visual mask, bool ``[batch, seq]``.
        """
        videos = self.video_mask(call)
        codes = mask.int() if videos is None else mask.int() + (videos & mask).int()
        host = codes.cpu()  # the one transfer: everything else is decided on the host
        found: list[list[Item]] = [[] for _ in range(len(host))]
        for code, kind in enumerate(KINDS, start=1):
            positions = [row.nonzero()[:, 0] for row in host == code]
            if not sum(map(len, positions)):
                continue
            for sample, parts in enumerate(self.parts(call, kind, positions)):
                places = positions[sample].split([size for size, _ in parts])
                found[sample] += [
                    Item(kind, index, sample, where) for where, (_, index) in zip(places, parts, strict=True)
                ]
        for items in found:
            items.sort(key=lambda item: int(item.positions[0]))
        return found

    def video_mask(self, call: Mapping[str, Any]) -> Tensor | None:
        """See :meth:`tokenprune.adapters.base.Adapter.video_mask`."""
        return self.marked(call, self.kind_ids("video")) if len(self.visual_ids) > 1 else None

    def kind_ids(self, kind: Kind) -> tuple[int, ...]:
        """Ids of the placeholder tokens of a kind."""
        names = (f"{kind}_token_id", f"{kind}_token_index")
        ids = {getattr(config, name, None) for config in (self.config, self.text_config) for name in names}
        return tuple(sorted(i for i in ids if isinstance(i, int)))


# ---- sizes ---


def pixels(call: Mapping[str, Any], kind: Kind) -> Tensor | None:
    """The pixels of a kind; ``generate`` may have encoded them before the call."""
    return next((call[name] for name in PIXELS[kind] if isinstance(call.get(name), Tensor)), None)


def features(call: Mapping[str, Any], kind: Kind) -> Any:
    """Features of a kind that ``generate`` has computed before the call: a sequence of tensors, or None."""
    return getattr((call.get("mm_encoder_outputs") or {}).get(kind), "pooler_output", None)


def feature_sizes(call: Mapping[str, Any], kind: Kind) -> list[int] | None:
    """Rows of each of the precomputed features of a kind."""
    given = features(call, kind)
    return None if given is None else [math.prod(part.shape[:-1]) for part in given]


def uniform_sizes(call: Mapping[str, Any], kind: Kind, count: int) -> list[int] | None:
    """Sizes where one tensor holds all items: they are equally large."""
    given = pixels(call, kind)
    if given is None:
        return feature_sizes(call, kind)
    each, rest = divmod(count, max(len(given), 1))
    return None if rest or not each else [each] * len(given)


def deal(sizes: Sequence[int], counts: Sequence[int]) -> list[list[int]] | None:
    """Deal items out to samples in order: the indices of each sample's items; None where they do not fit.

    ``generate`` of transformers 5.17 repeats images one by one, but samples whole: A A B B for two samples of A and B.

    Args:
        sizes: Tokens of each item.
        counts: Tokens of each sample.
    """
    items = [index for index, size in enumerate(sizes) if size]
    for copies in range(1, len(counts) + 1):
        if not (_repeats([sizes[index] for index in items], copies) and _repeats(counts, copies)):
            continue
        dealt = _deal(items[::copies], sizes, counts[::copies])
        if dealt is not None:
            place = {index: order for order, index in enumerate(items)}
            return [[items[place[index] + copy] for index in parts] for parts in dealt for copy in range(copies)]
    return None


def _repeats(values: Sequence[int], copies: int) -> bool:
    """Whether every value stands there so many times in a row."""
    return list(values) == [value for value in values[::copies] for _ in range(copies)]


def _deal(items: Sequence[int], sizes: Sequence[int], counts: Sequence[int]) -> list[list[int]] | None:
    left, found = list(items), []
    for count in counts:
        parts: list[int] = []
        while left and sum(sizes[index] for index in parts) < count:
            parts.append(left.pop(0))
        if sum(sizes[index] for index in parts) != count:
            return None
        found.append(parts)
    return None if left else found


def run_lengths(positions: Tensor) -> list[int]:
    """Lengths of the unbroken runs of some positions."""
    breaks = ((positions.diff() > 1).nonzero()[:, 0] + 1).tolist()
    edges = [0, *breaks, len(positions)]
    return [end - start for start, end in itertools.pairwise(edges) if end > start]


# ---- places ---


def lattice(frames: int, rows: int, columns: int, first_frame: int = 0) -> Tensor:
    """(frame, row, column) of ``frames`` grids of tokens, one after the other, long ``[tokens, 3]``."""
    frame = torch.arange(first_frame, first_frame + frames)
    return torch.cartesian_prod(frame, torch.arange(rows), torch.arange(columns)).reshape(-1, 3)


def square(size: int, frames: int = 1) -> Tensor | None:
    """Frames of square grids, each perhaps with a class token before it (-1); None where that cannot be."""
    each, rest = divmod(size, max(frames, 1))
    side = math.isqrt(each)
    if rest or each - side * side > 1 or not side:
        return None
    plain = lattice(frames, side, side)
    if each == side * side:
        return plain
    marked = torch.full((frames, each, 3), -1)
    marked[:, 1:] = plain.reshape(frames, -1, 3)
    return marked.reshape(-1, 3)


def broken_rows(positions: Tensor) -> Tensor | None:
    """The grid of an image whose rows stand apart in the text (Pixtral's row breaks)."""
    lengths = run_lengths(positions)
    return lattice(1, len(lengths), lengths[0]) if len(set(lengths)) == 1 else None
