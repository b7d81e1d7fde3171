"""V2Drop's token score: how far one layer moves a token."""

from torch import Tensor

from tokenprune.flops.decoder import Shape
from tokenprune.scorers.base import Scorer
from tokenprune.signals.context import PruneContext


class StateChange(Scorer):
    """L2 distance between a token's hidden states at the input of layer K and at the input of layer K-1.

    Tokens that layer K-1 hardly moves are dropped. No attention is read, and no text. The distance is computed in
    float32; the published code computes it in the model's precision, where in half precision more tokens tie.

    Source: "Variation-aware Vision Token Dropping for Faster Large Vision-Language Models" (V2Drop), arXiv 2509.01552.
    """

    @property
    def needs(self) -> frozenset[str]:
        """Hidden states at the input of both layers."""
        return frozenset({"hidden", "previous"})

    def score(self, ctx: PruneContext) -> Tensor:
        """See :meth:`tokenprune.scorers.base.Scorer.score`."""
        change: Tensor = (ctx.hidden.float() - ctx.previous.float()).norm(dim=-1)
        return change

    def flops(self, shape: Shape, visual: int, tokens: int) -> int:
        """One subtraction, one multiplication and one addition per value."""
        return 3 * visual * shape.width
