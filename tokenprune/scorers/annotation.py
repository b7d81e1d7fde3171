"""Scores that the caller provides, e.g. the true foreground of a synthetic task: an upper bound, not a method."""

from torch import Tensor

from tokenprune.scorers.base import Scorer
from tokenprune.signals.context import PruneContext


class Annotation(Scorer):
    """Scores that were given to ``run.annotate(<field>=[...])``.

    The method "oracle" of the result tables uses the annotation ``foreground``.

    Attributes:
        field: Name of the annotation.
    """

    field: str = "foreground"

    @property
    def needs(self) -> frozenset[str]:
        """No signal of the model, but what the caller hands over."""
        return frozenset({"annotations"})

    def score(self, ctx: PruneContext) -> Tensor:
        """See :meth:`tokenprune.scorers.base.Scorer.score`."""
        return ctx.annotation(self.field).float()
