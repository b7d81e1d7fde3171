"""Null models of a score: the norm of a token's states."""

from typing import Annotated, Literal

from torch import Tensor

from tokenprune.core.tunable import Tunable
from tokenprune.flops.decoder import Shape
from tokenprune.scorers.head_states import HeadStates
from tokenprune.signals.context import PruneContext


class Norm(HeadStates):
    """L2 norm of a token's states over all heads.

    Attributes:
        source: See :class:`~tokenprune.scorers.head_states.HeadStates`.
        tower_layer: See :class:`~tokenprune.scorers.head_states.HeadStates`.
        keep: ``large`` keeps the largest norms, ``small`` the smallest.
    """

    keep: Annotated[Literal["large", "small"], Tunable("large", "small")] = "large"

    def score(self, ctx: PruneContext) -> Tensor:
        """See :meth:`tokenprune.scorers.base.Scorer.score`."""
        norm: Tensor = self.states(ctx).flatten(2).float().norm(dim=-1)
        return norm if self.keep == "large" else -norm

    def flops(self, shape: Shape, visual: int, tokens: int) -> int:
        """One multiplication and one addition per value."""
        heads, dim = self.sizes(shape)
        return 2 * visual * heads * dim
