"""Random scores: the baseline that every method has to beat."""

import torch
from torch import Tensor

from tokenprune.ops.seeds import mixed_seed
from tokenprune.scorers.base import Scorer
from tokenprune.signals.context import PruneContext


class Random(Scorer):
    """Independent uniform scores. They depend on the seed and the sample, not on the batch that contains the sample.

    Attributes:
        seed: Seed; other seeds give other scores.
    """

    seed: int = 0

    @property
    def needs(self) -> frozenset[str]:
        """No signal of the model, but the numbers of the samples."""
        return frozenset({"sample_ids"})

    def score(self, ctx: PruneContext) -> Tensor:
        """See :meth:`tokenprune.scorers.base.Scorer.score`."""
        width = ctx.visual_mask.shape[1]
        rows = []
        for sample in ctx.sample_ids:
            # the generator is on the host, so that the scores are the same on every device
            generator = torch.Generator().manual_seed(mixed_seed(self.seed, sample))
            rows.append(torch.rand(width, generator=generator, dtype=torch.float64))
        return torch.stack(rows).to(ctx.visual_mask.device)
