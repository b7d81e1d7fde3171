"""Null model of the matrix entropy: how far a token's heads are apart, without their spectrum."""

from typing import Annotated, Literal

from torch import Tensor

from tokenprune.core.tunable import Tunable
from tokenprune.flops.decoder import Shape
from tokenprune.scorers.head_states import HeadStates
from tokenprune.signals.context import PruneContext


class Energy(HeadStates):
    """Trace of the centred covariance over heads: the sum of squares of a token's states minus their mean over heads.

    The matrix entropy of the paper divides by this trace, that of the authors' published code does not. So a score that
    ranks as this one does has not used the spectrum: the energy is a null model of ``matrix_entropy``.

    Source: the trace of the covariance of "EntropyPrune: Matrix Entropy Guided Visual Token Pruning",
    arXiv 2602.17196, not divided by the number of heads.

    Attributes:
        source: See :class:`~tokenprune.scorers.head_states.HeadStates`.
        tower_layer: See :class:`~tokenprune.scorers.head_states.HeadStates`.
        keep: ``large`` keeps the largest energies, ``small`` the smallest.
    """

    keep: Annotated[Literal["large", "small"], Tunable("large", "small")] = "large"

    def score(self, ctx: PruneContext) -> Tensor:
        """See :meth:`tokenprune.scorers.base.Scorer.score`."""
        states = self.states(ctx).float()
        energy = (states - states.mean(-2, keepdim=True)).square().sum((-2, -1))
        return energy if self.keep == "large" else -energy

    def flops(self, shape: Shape, visual: int, tokens: int) -> int:
        """The mean, its subtraction, the squares and their sum."""
        heads, dim = self.sizes(shape)
        return 4 * visual * heads * dim
