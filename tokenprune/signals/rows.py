"""The rows of the sequence before a stage: the text between which the visual tokens stand."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from tokenprune.signals.visual_axis import VisualAxis


@dataclass(frozen=True)
class Rows:
    """All rows of a batch: text, visual tokens and padding, without the tokens that earlier stages dropped.

    Attributes:
        hidden: Hidden states that enter the stage's layer, ``[batch, rows, dim]``.
        mask: Rows that are tokens and not padding, bool ``[batch, rows]``.
        axis: The visual tokens, with their rows and their positions in the unpruned sequence.
    """

    hidden: Tensor
    mask: Tensor
    axis: VisualAxis

    @cached_property
    def text(self) -> Tensor:
        """Rows that are text tokens, bool ``[batch, rows]``."""
        return self.mask & ~self._marked(self.axis.mask)

    @cached_property
    def last(self) -> Tensor:
        """Row of each sample's last token, long ``[batch]``."""
        return self.mask.int().cumsum(1).argmax(1)

    def among(self, index: Tensor, mask: Tensor) -> Rows:
        """The same rows, as if some visual tokens were padding.

        Args:
            index: Index of each token that is left on the visual axis, long ``[batch, picked]``.
            mask: Entries that are tokens and not padding, bool ``[batch, picked]``.
        """
        axis = self.axis.among(index, mask)
        left = Rows(self.hidden, self.mask, axis)
        return Rows(self.hidden, self.text | left._marked(mask), axis)

    def _marked(self, chosen: Tensor) -> Tensor:
        """The rows of some visual tokens, bool ``[batch, rows]``."""
        counts = torch.zeros_like(self.mask, dtype=torch.int32)
        return counts.scatter_add(1, self.axis.rows, chosen.int()) > 0  # padding points to row 0 and adds 0 there
