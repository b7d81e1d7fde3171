"""Null models of a score: the norm of a token's states."""

from __future__ import annotations

from typing import Annotated, Literal

from torch import Tensor

from tokenprune.core.tunable import Tunable
from tokenprune.flops.decoder import Shape
from tokenprune.scorers.base import Scorer
from tokenprune.signals.context import PruneContext


class Norm(Scorer):
    """L2 norm of a token's states over all heads.

    Attributes:
        source: States to measure.
        keep: ``large`` keeps the largest norms, ``small`` the smallest.
    """

    source: Annotated[Literal["query", "key", "value", "hidden"], Tunable("query", "key", "value", "hidden")] = "query"
    keep: Annotated[Literal["large", "small"], Tunable("large", "small")] = "large"

    @property
    def needs(self) -> frozenset[str]:
        """The states to measure."""
        return frozenset({self.source})

    def score(self, ctx: PruneContext) -> Tensor:
        """See :meth:`tokenprune.scorers.base.Scorer.score`."""
        states: Tensor = getattr(ctx, self.source)
        norm: Tensor = states.flatten(2).float().norm(dim=-1)
        return norm if self.keep == "large" else -norm

    def flops(self, shape: Shape, visual: int, tokens: int) -> int:
        """One multiplication and one addition per value."""
        size = {"query": shape.heads * shape.head_dim, "hidden": shape.width}
        return 2 * visual * size.get(self.source, shape.kv_heads * shape.head_dim)
