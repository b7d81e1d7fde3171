"""The baseline that every method has to beat."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenprune.context import PruneContext
from tokenprune.scorers.base import Scorer


class Random(Scorer):
    """Independent uniform scores, reproducible for a seed and a sample whatever batch the sample comes in.

    Attributes:
        seed: Seed; another seed gives other scores.
    """

    seed: int = 0

    @property
    def needs(self) -> frozenset[str]:
        """Nothing of the model."""
        return frozenset()

    def score(self, ctx: PruneContext) -> Tensor:
        """See :meth:`tokenprune.scorers.base.Scorer.score`."""
        width = ctx.visual_mask.shape[1]
        rows = []
        for sample in ctx.sample_ids:
            # the generator lives on the host: the same scores on every device
            generator = torch.Generator().manual_seed(_mix(self.seed, sample))
            rows.append(torch.rand(width, generator=generator, dtype=torch.float64))
        return torch.stack(rows).to(ctx.visual_mask.device)


def _mix(seed: int, sample: int) -> int:
    """One 63-bit integer from two, far apart for neighbouring inputs (splitmix64's finaliser)."""
    mask = (1 << 64) - 1
    state = (seed * 0x9E3779B97F4A7C15 + sample + 1) & mask
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & mask
    return (state ^ (state >> 31)) >> 1
