"""The patches that make up each feature, where a model pools, scales or rearranges patches itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Merging(NamedTuple):
    """The patches and weights of each feature, on the host.

    Attributes:
        patches: Patches of each feature, long ``[features, merged]``.
        weights: Weight of each of them, float32 ``[features, merged]``.
    """

    patches: Tensor
    weights: Tensor


def newline(merged: int) -> Merging:
    """One newline: a feature made of no patch, so that all its weights are zero.

    Args:
        merged: Patches per feature of the merging that it is concatenated to.
    """
    return Merging(torch.zeros(1, merged, dtype=torch.long), torch.zeros(1, merged))


def repeat(merging: Merging, patches: int, times: int) -> Merging:
    """The merging of one frame or video repeated for ``times`` of them, which have ``patches`` patches each."""
    return concatenate([Merging(merging.patches + patches * number, merging.weights) for number in range(times)])


def concatenate(mergings: Sequence[Merging]) -> Merging:
    """Join mergings whose patches are already numbered over all of them."""
    patches, weights = zip(*mergings, strict=True)
    return Merging(torch.cat(patches), torch.cat(weights))
