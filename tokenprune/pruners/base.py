"""The contract of a pruner."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from tokenprune.flops.decoder import Shape
from tokenprune.signals.context import PruneContext
from tokenprune.signals.signal_reader import SignalReader


@dataclass(frozen=True)
class Selection:
    """The tokens that survive a stage.

    Attributes:
        keep: True for tokens that survive, bool ``[batch, n_visual]``. The number kept of each image must equal its
            quota, unless the stage is open-ended or the pruner divides the count between images itself.
        hidden: New hidden states of the visual tokens, ``[batch, n_visual, dim]``, if the pruner merges tokens. Only
            the entries of kept tokens are used. None leaves the states unchanged.
        scores: The pruner's preference, the higher the more wanted, floating ``[batch, n_visual]``; NaN for tokens
            without a score. For pictures only: ``keep`` alone decides. None if the pruner scores no single tokens.
        merged: The kept token that each dropped token was merged into, as its index on the visual axis, long
            ``[batch, n_visual]``; -1 for tokens that were not merged. For pictures only. None if the pruner merges
            nothing.
    """

    keep: Tensor
    hidden: Tensor | None = None
    scores: Tensor | None = None
    merged: Tensor | None = None

    def detached(self) -> Selection:
        """The same selection without the graph of its gradients, for whoever keeps it."""
        hidden, scores = (None if x is None else x.detach() for x in (self.hidden, self.scores))
        return replace(self, hidden=hidden, scores=scores)


class Pruner(SignalReader, ABC):
    """Chooses the visual tokens that survive a stage, and may merge the others into them."""

    #: Whether the pruner can decide how many tokens survive. It then accepts open-ended budgets, whose quotas are
    #: lower bounds.
    adaptive: ClassVar[bool] = False

    #: Whether the pruner divides a sample's count between its images itself, at least one token each. Then only the
    #: sum of ``quotas`` is binding.
    shares_quota_itself: ClassVar[bool] = False

    @property
    def across_images(self) -> bool:
        """See :attr:`tokenprune.signals.signal_reader.SignalReader.across_images`."""
        return self.shares_quota_itself or super().across_images

    def at(self, stage: int) -> Pruner:
        """The pruner of one stage, counted from 0. This pruner itself, unless it combines several."""
        return self

    def check(self, layers: tuple[int, ...]) -> None:
        """Refuse layers that the pruner cannot be used with. Called before any forward pass.

        Args:
            layers: The layers before which tokens are dropped, one per stage.

        Raises:
            ConfigError: The pruner does not support this number of stages.
        """

    @abstractmethod
    def select(self, ctx: PruneContext) -> Selection:
        """Choose the tokens that survive.

        Args:
            ctx: The stage; ``ctx.quotas`` are the numbers of tokens to keep per sample and image.

        Returns:
            The selection. Its counts per image must equal ``ctx.quotas`` exactly, unless ``ctx.open_ended`` or
            ``shares_quota_itself`` is true.
        """

    def flops(self, shape: Shape, visual: int, tokens: int) -> int:
        """FLOPs of the selection for one sample at one stage; see :meth:`tokenprune.scorers.base.Scorer.flops`."""
        return 0
