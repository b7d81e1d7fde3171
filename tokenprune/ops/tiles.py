"""Images that a vision tower sees in tiles: which tokens belong to which tile, and how a quota is divided."""

from collections.abc import Sequence

import torch
from torch import Tensor

from tokenprune.ops.per_image import PerImage


def per_tile(images: PerImage, tiles: Sequence[Tensor]) -> PerImage:
    """The layout of a batch tile by tile.

    The quota of an image is divided between its tiles in proportion to their patches, so tiles of one size get the same
    (see :func:`divide`). A token that is made of no patch (a row separator) belongs to the tile of the token before it.

    Args:
        images: The layout image by image; no token may have been dropped yet.
        tiles: The tile of each visual token of each sample, long, on the host; -1 for tokens made of no patch.

    Returns:
        The same tokens with tiles in place of images.
    """
    groups = torch.full(images.groups.shape, -1)
    all_sizes, all_quotas = [], []
    for sample, numbers in enumerate(tiles):
        sizes: list[int] = []
        quotas: list[int] = []
        start = 0
        for size, quota in zip(images.host_sizes[sample], images.host_quotas[sample], strict=True):
            own = numbers[start : start + size]
            found, tile = _filled(own).unique(return_inverse=True)
            count = len(found)
            groups[sample, start : start + size] = tile + len(sizes)
            patches = tile[own >= 0].bincount(minlength=count).tolist()
            tokens = tile.bincount(minlength=count).tolist()
            sizes += tokens
            quotas += divide(quota, patches, tokens)
            start += size
        all_sizes.append(sizes)
        all_quotas.append(quotas)
    return PerImage(groups.to(images.groups.device), all_sizes, all_quotas)


def _filled(tiles: Tensor) -> Tensor:
    """Every -1 replaced by the number before it; at the start by 0."""
    place = torch.where(tiles >= 0, torch.arange(len(tiles)), -1).cummax(0).values
    return torch.where(place >= 0, tiles[place.clamp(min=0)], 0)


def divide(total: int, weights: Sequence[int], capacity: Sequence[int]) -> list[int]:
    """Divide a quota in proportion to weights.

    Shares are rounded down; the remainder goes one each to the largest fractions (ties: the earlier one). A share that
    exceeds its weight is cut to it; what is left over fills the capacities from the front.

    Args:
        total: The quota, at most the sum of the capacities.
        weights: Patches of each tile.
        capacity: Tokens of each tile, at least its patches.

    Returns:
        One quota per tile; they sum to ``total``.
    """
    count = max(sum(weights), 1)
    wanted = min(total, sum(weights))
    shares = [wanted * weight // count for weight in weights]
    by_fraction = sorted(range(len(weights)), key=lambda i: (-(wanted * weights[i] % count), i))
    for index in by_fraction[: wanted - sum(shares)]:
        shares[index] += 1
    left = total - wanted
    for index, room in enumerate(capacity):
        more = min(left, room - shares[index])
        shares[index] += more
        left -= more
    return shares
