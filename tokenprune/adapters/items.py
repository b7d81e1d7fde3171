"""Items, which are single images or videos, and how they are assigned to the samples of a batch."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from tokenprune.adapters.modalities import Modality


@dataclass(frozen=True)
class ItemSize:
    """Size of one item of a sample.

    Attributes:
        tokens: Its visual tokens.
        index: Its number among all of its modality in the batch, or None where the call's arguments do not list them.
    """

    tokens: int
    index: int | None


@dataclass(frozen=True)
class Item:
    """One image or video of one sample.

    Attributes:
        modality: ``image`` or ``video``.
        index: Its number among all of its modality in the batch, or None where the call's arguments do not list them.
        sample: The sample that it belongs to.
        positions: Sequence positions of its tokens, long, on the host.
    """

    modality: Modality
    index: int | None
    sample: int
    positions: Tensor

    @property
    def size(self) -> int:
        """Number of its tokens."""
        return len(self.positions)


def run_lengths(positions: Tensor) -> list[int]:
    """Lengths of the unbroken runs of some positions, which are in ascending order."""
    breaks = ((positions.diff() > 1).nonzero()[:, 0] + 1).tolist()
    edges = [0, *breaks, len(positions)]
    return [end - start for start, end in itertools.pairwise(edges) if end > start]


def assign_items(sizes: Sequence[int], counts: Sequence[int]) -> list[list[int]] | None:
    """Assign items to samples in order.

    ``generate`` of transformers 5.17 repeats images one by one, but samples whole: A A B B for two samples of A and B.

    Args:
        sizes: Tokens of each item.
        counts: Tokens of each sample.

    Returns:
        The indices of each sample's items; None where the items do not add up to the samples.
    """
    items = [index for index, size in enumerate(sizes) if size]
    for copies in range(1, len(counts) + 1):
        if not (_is_repeated([sizes[index] for index in items], copies) and _is_repeated(counts, copies)):
            continue
        assigned = _assign_in_order(items[::copies], sizes, counts[::copies])
        if assigned is not None:
            rank = {index: order for order, index in enumerate(items)}
            return [[items[rank[index] + copy] for index in indices] for indices in assigned for copy in range(copies)]
    return None


def _is_repeated(values: Sequence[int], copies: int) -> bool:
    """Whether every value occurs ``copies`` times in a row."""
    return list(values) == [value for value in values[::copies] for _ in range(copies)]


def _assign_in_order(items: Sequence[int], sizes: Sequence[int], counts: Sequence[int]) -> list[list[int]] | None:
    remaining, assigned = list(items), []
    for count in counts:
        indices: list[int] = []
        while remaining and sum(sizes[index] for index in indices) < count:
            indices.append(remaining.pop(0))
        if sum(sizes[index] for index in indices) != count:
            return None
        assigned.append(indices)
    return None if remaining else assigned
