"""Keep the highest-scored visual tokens of every image."""

from typing import Annotated

from tokenprune.core.component import FromRegistry
from tokenprune.flops.decoder import Shape
from tokenprune.ops.topk import topk_by_group
from tokenprune.pruners.base import Pruner, Selection
from tokenprune.scorers.base import Scorer
from tokenprune.signals.context import PruneContext


class TopK(Pruner):
    """Keep the tokens with the highest scores, as many of each image as its quota. Ties keep the earlier position.

    Attributes:
        scorer: Scores the tokens.
    """

    scorer: Annotated[Scorer, FromRegistry("scorers")]

    @property
    def needs(self) -> frozenset[str]:
        """The signals of the scorer; unlike other pruners, none of its own."""
        return self.scorer.needs

    def select(self, ctx: PruneContext) -> Selection:
        """See :meth:`tokenprune.pruners.base.Pruner.select`."""
        scores = self.scorer.checked(ctx)
        return Selection(keep=topk_by_group(scores, ctx.groups, ctx.quotas), scores=scores)

    def flops(self, shape: Shape, visual: int, tokens: int) -> int:
        """The FLOPs of the scorer. Sorting is not counted."""
        return self.scorer.flops(shape, visual, tokens)
