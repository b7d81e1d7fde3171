"""The rows of the sequence before a stage, and the visual tokens among them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from tokenprune.ops.gather import marked_first, rows_at


@dataclass(frozen=True)
class VisualAxis:
    """Maps the visual axis to the rows of a batch.

    Attributes:
        mask: Entries that are tokens and not padding, bool ``[batch, n_visual]``.
        rows: Row of each visual token, long ``[batch, n_visual]`` (0 where padding).
        positions: Position of each visual token in the unpruned sequence, long ``[batch, n_visual]`` (0 where padding).
        images: Image or video that each visual token belongs to, long ``[batch, n_visual]`` (-1 where padding).
    """

    mask: Tensor
    rows: Tensor
    positions: Tensor
    images: Tensor

    @classmethod
    def of(cls, is_visual: Tensor, image: Tensor, size: int, positions: Tensor | None = None) -> VisualAxis:
        """Build the axis from a mask of the rows.

        Args:
            is_visual: Rows that are visual tokens, bool ``[batch, rows]``.
            image: Image of each row, long ``[batch, rows]``.
            size: Length of the axis: the largest number of visual tokens of a sample. It is a host integer, so that
                nothing waits for the device.
            positions: Position of each row in the unpruned sequence, long ``[batch, rows]``; None if nothing has been
                dropped yet.
        """
        order, mask = marked_first(is_visual, size)
        rows = order.masked_fill(~mask, 0)
        # padding entries point to row 0, which in a ragged batch may be padding itself (position -1)
        token_positions = rows if positions is None else positions.gather(1, rows).masked_fill(~mask, 0)
        return cls(mask, rows, token_positions, image.gather(1, order).masked_fill(~mask, -1))

    def gather(self, values: Tensor) -> Tensor:
        """Gather values of the rows, ``[batch, rows, ...]``, on the axis, ``[batch, n_visual, ...]``."""
        return rows_at(values, self.rows)

    def among(self, index: Tensor, mask: Tensor) -> VisualAxis:
        """The axis of some of its tokens.

        Args:
            index: Index of each of them on this axis, long ``[batch, picked]``.
            mask: Entries that are tokens and not padding, bool ``[batch, picked]``.
        """
        rows, positions = (of.gather(1, index).masked_fill(~mask, 0) for of in (self.rows, self.positions))
        return VisualAxis(mask, rows, positions, self.images.gather(1, index).masked_fill(~mask, -1))


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
