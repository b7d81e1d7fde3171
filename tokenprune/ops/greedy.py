"""The end of a greedy loop over many images that have quotas of their own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def mark_picks(picks: Sequence[Tensor], quotas: Tensor, size: int) -> Tensor:
    """Mark the first ``quotas`` picks of each image. No host-device synchronisation.

    Args:
        picks: The token that each step picked, long ``[images, 1]`` per step. Picks after the quota may repeat.
        quotas: Number of picks that count, long ``[images]``.
        size: Number of tokens per image.

    Returns:
        Bool ``[images, size]``.
    """
    chosen = torch.zeros(len(quotas), size + 1, dtype=torch.bool, device=quotas.device)
    if picks:
        order = torch.cat(list(picks), dim=1)
        step = torch.arange(len(picks), device=order.device)
        # one extra column takes the picks after the quota
        chosen.scatter_(1, order.masked_fill(step >= quotas[:, None], size), True)
    return chosen[:, :size]
