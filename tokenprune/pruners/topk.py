"""Keep the highest-scored visual tokens of every image."""

from __future__ import annotations

from typing import Annotated

from torch import Tensor

from tokenprune.component import FromRegistry
from tokenprune.context import PruneContext
from tokenprune.flops import Shape
from tokenprune.ops.topk import topk_by_group
from tokenprune.pruners.base import Pruner, Selection
from tokenprune.scorers.base import Scorer


class TopK(Pruner):
    """Score once, keep each image's quota of highest scores; equal scores keep the earlier position."""

    scorer: Annotated[Scorer, FromRegistry("scorers")]

    @property
    def needs(self) -> frozenset[str]:
        """What the scorer needs."""
        return self.scorer.needs

    @property
    def vision_layers(self) -> frozenset[int]:
        """What the scorer reads."""
        return self.scorer.vision_layers

    def select(self, ctx: PruneContext, quotas: Tensor) -> Selection:
        """See :meth:`tokenprune.pruners.base.Pruner.select`."""
        scores = self.scorer.checked(ctx)
        return Selection(keep=topk_by_group(scores, ctx.groups, quotas))

    def flops(self, shape: Shape, visual: int, tokens: int) -> int:
        """What the scorer takes; sorting is not counted."""
        return self.scorer.flops(shape, visual, tokens)
