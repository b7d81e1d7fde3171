"""The contract of a pruner."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from tokenprune.context import PruneContext
from tokenprune.flops import Shape
from tokenprune.reader import SignalReader


@dataclass(frozen=True)
class Selection:
    """What survives a stage.

    Attributes:
        keep: Bool ``[batch, n_visual]``; the number kept per sample and group must equal the quotas, unless the
            budget leaves it to the pruner, or the pruner divides the count between images itself.
        hidden: New hidden states of the visual tokens, ``[batch, n_visual, dim]`` (merging, recycling); only the
            kept entries are used. None leaves them as they are.
    """

    keep: Tensor
    hidden: Tensor | None = None


class Pruner(SignalReader, ABC):
    """Chooses the surviving visual tokens, and what happens to the others."""

    #: Can decide by itself how many survive: takes budgets that are open-ended, with quotas as the fewest there may be.
    adaptive: ClassVar[bool] = False

    #: Divides the count of a sample between its images itself, at least one each; only the sum of ``quotas`` binds.
    across_images: ClassVar[bool] = False

    def at(self, stage: int) -> Pruner:
        """The pruner of one stage, counted from 0: this one, unless it combines several."""
        return self

    def check(self, layers: tuple[int, ...]) -> None:
        """Refuse stages that the pruner does not fit; called before any forward.

        Raises:
            ConfigError: The pruner does not fit so many stages.
        """

    @abstractmethod
    def select(self, ctx: PruneContext) -> Selection:
        """Choose the survivors.

        Args:
            ctx: What may be seen; ``ctx.quotas`` are the tokens to keep per sample and image.

        Returns:
            The selection; its counts per image must equal ``ctx.quotas`` exactly (unless ``ctx.open_ended`` or
            ``across_images``).
        """

    def flops(self, shape: Shape, visual: int, tokens: int) -> int:
        """FLOPs of choosing at one stage, one sample; see :meth:`tokenprune.scorers.base.Scorer.flops`."""
        return 0
