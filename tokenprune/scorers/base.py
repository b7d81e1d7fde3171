"""The contract of a scorer."""

from abc import ABC, abstractmethod
from typing import NoReturn

from torch import Tensor

from tokenprune.core import plugins
from tokenprune.core.component_errors import blamed
from tokenprune.errors import ScoreError
from tokenprune.flops.decoder import Shape
from tokenprune.signals.context import PruneContext
from tokenprune.signals.signal_reader import SignalReader


class Scorer(SignalReader, ABC):
    """Rates how valuable each visual token is.

    A scorer is one small file: a docstring with the idea and the paper, its fields, and :meth:`score`. It must not
    synchronise host and device (no ``.item()``, no ``.tolist()``, no ``if`` on a tensor).
    """

    @abstractmethod
    def score(self, ctx: PruneContext) -> Tensor:
        """Score every visual token of every sample.

        Args:
            ctx: The stage and its signals; see :class:`~tokenprune.signals.context.PruneContext`.

        Returns:
            Floating ``[batch, n_visual]``; tokens with higher scores are kept. Entries of padding are ignored.
        """

    def checked(self, ctx: PruneContext) -> Tensor:
        """Call :meth:`score` and check the type, shape and values of its result. Pruners call this method.

        Args:
            ctx: The stage and its signals.

        Returns:
            The scores, floating ``[batch, n_visual]``.

        Raises:
            ScoreError: The result is no floating tensor of this shape, or :meth:`score` raised an exception. NaN and
                infinite scores raise the same error at the end of the forward pass.
        """
        with blamed("scorers", self, "score", ctx.layer):
            scores = self.score(ctx)
        if not isinstance(scores, Tensor):
            self._refuse(ctx, f"returned {type(scores).__name__}")
        if scores.shape != ctx.visual_mask.shape:
            self._refuse(ctx, f"returned shape {tuple(scores.shape)}")
        if not scores.is_floating_point():
            self._refuse(ctx, f"returned {scores.dtype}")
        ctx.check_finite(scores, type(self).__name__)
        return scores

    def _refuse(self, ctx: PruneContext, what: str) -> NoReturn:
        described = plugins.registry("scorers").describe(type(self))
        raise ScoreError(
            f"{described} {what} at layer {ctx.layer}",
            f"return a floating tensor [batch, n_visual] = {tuple(ctx.visual_mask.shape)}",
        )

    def flops(self, shape: Shape, visual: int, tokens: int) -> int:
        """FLOPs of scoring one sample, for reports: at least those of matrix products and decompositions.

        Args:
            shape: The decoder's sizes.
            visual: Visual tokens to score.
            tokens: All tokens of the sequence, text and visual.
        """
        return 0
