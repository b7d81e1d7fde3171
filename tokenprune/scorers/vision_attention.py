"""The attention that the vision tower itself pays to its patches."""

from __future__ import annotations

from torch import Tensor

from tokenprune.context import PruneContext
from tokenprune.reader import TowerLayerNumber
from tokenprune.scorers.base import Scorer


class VisionAttention(Scorer):
    """Attention that each token's patch receives in a layer of the vision tower, mean over heads.

    From the class token; in a tower without one, from all patches on average. It is known before the language model
    has started, so it serves stages before layer 0.

    Source: the "dominant" tokens of "VisionZip: Longer is Better but Not Necessary in Vision Language Models"
    (arXiv 2412.04467), which sums over heads: the same order.

    Attributes:
        layer: Layer of the tower; negative from the end.
    """

    layer: TowerLayerNumber = -2

    @property
    def needs(self) -> frozenset[str]:
        """Nothing of the language model."""
        return frozenset()

    def score(self, ctx: PruneContext) -> Tensor:
        """See :meth:`tokenprune.scorers.base.Scorer.score`."""
        return ctx.vision(self.layer).attention
