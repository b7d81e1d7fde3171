"""Attention in the vision tower."""

from typing import Annotated

from torch import Tensor

from tokenprune.core.tunable import TunableLayer
from tokenprune.scorers.base import Scorer
from tokenprune.signals.context import PruneContext
from tokenprune.signals.signal_reader import TowerLayerNumber


class VisionAttention(Scorer):
    """Attention that each token's patch receives in a layer of the vision tower, mean over heads.

    The attention is the class token's; in a tower without a class token it is the mean over all patches. It is known
    before the language model starts, so stages before layer 0 can use it.

    Source: the "dominant" tokens of "VisionZip: Longer is Better but Not Necessary in Vision Language Models"
    (arXiv 2412.04467), which sums over heads: the order is the same.

    Attributes:
        layer: Layer of the tower; negative from the end.
    """

    layer: Annotated[TowerLayerNumber, TunableLayer(1 / 3, 2 / 3, 1.0)] = -2

    @property
    def needs(self) -> frozenset[str]:
        """No signal of the language model."""
        return frozenset()

    def score(self, ctx: PruneContext) -> Tensor:
        """See :meth:`tokenprune.scorers.base.Scorer.score`."""
        return ctx.vision(self.layer).attention
