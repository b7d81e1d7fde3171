"""Scores that the caller brings, e.g. the true foreground of a synthetic task: an upper bound, not a method."""

from __future__ import annotations

from torch import Tensor

from tokenprune.context import PruneContext
from tokenprune.scorers.base import Scorer


class Annotation(Scorer):
    """The values given to ``run.annotate(<field>=[...])``; the "oracle" of every table is ``foreground``.

    Attributes:
        field: Name of the annotation.
    """

    field: str = "foreground"

    @property
    def needs(self) -> frozenset[str]:
        """Nothing of the model."""
        return frozenset()

    def score(self, ctx: PruneContext) -> Tensor:
        """See :meth:`tokenprune.scorers.base.Scorer.score`."""
        return ctx.annotation(self.field).float()
