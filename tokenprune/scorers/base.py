"""The contract of a scorer."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from tokenprune.context import PruneContext
from tokenprune.errors import ScoreError
from tokenprune.flops import Shape
from tokenprune.reader import SignalReader


class Scorer(SignalReader, ABC):
    """Says how valuable each visual token is.

    A scorer is one small file: a docstring with the idea and the paper, its fields, and :meth:`score`.
    It must not synchronise host and device (no ``.item()``, no ``.tolist()``, no ``if`` on a tensor).
    """

    @abstractmethod
    def score(self, ctx: PruneContext) -> Tensor:
        """Score every visual token of every sample.

        Args:
            ctx: What may be seen; see :class:`~tokenprune.context.PruneContext`.

        Returns:
            Floating ``[batch, n_visual]``; higher = keep. Padded entries may hold anything.
        """

    def checked(self, ctx: PruneContext) -> Tensor:
        """:meth:`score`, its shape and values checked: what pruners call.

        Raises:
            ScoreError: The shape is wrong; NaN and infinity are found when the forward is done.
        """
        scores = self.score(ctx)
        if scores.shape != ctx.visual_mask.shape:
            raise ScoreError(
                f"scorer {type(self).__name__} returned shape {tuple(scores.shape)} at layer {ctx.layer}",
                f"return [batch, n_visual] = {tuple(ctx.visual_mask.shape)}",
            )
        ctx.check_finite(scores, type(self).__name__)
        return scores

    def flops(self, shape: Shape, visual: int, tokens: int) -> int:
        """FLOPs of scoring one sample, for reports: matrix products and decompositions; 0 where there are none.

        Args:
            shape: The decoder's sizes.
            visual: Visual tokens to score.
            tokens: All tokens of the sequence, text and visual.
        """
        return 0
