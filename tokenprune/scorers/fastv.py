"""FastV's token score: attention from the last prompt token."""

from __future__ import annotations

from torch import Tensor

from tokenprune.context import PruneContext
from tokenprune.flops import Shape
from tokenprune.scorers.base import Scorer


class FastV(Scorer):
    """Attention that each visual token receives from the last prompt token at layer K-1, mean over heads.

    Only the attention row of that one query is computed, from the layer's query and key states. This works under every
    attention implementation, runs no layer twice and materialises no attention map.

    Source: "An Image is Worth 1/2 Tokens After Layer 2", arXiv 2403.06764.
    """

    @property
    def needs(self) -> frozenset[str]:
        """The attention of layer K-1."""
        return frozenset({"attention"})

    def score(self, ctx: PruneContext) -> Tensor:
        """See :meth:`tokenprune.scorers.base.Scorer.score`."""
        row = ctx.probe.rows(ctx.last_row[:, None]).mean(1)[:, 0]
        return row.gather(1, ctx.visual_rows)

    def flops(self, shape: Shape, visual: int, tokens: int) -> int:
        """One query row against all keys."""
        return 2 * tokens * shape.heads * shape.head_dim
