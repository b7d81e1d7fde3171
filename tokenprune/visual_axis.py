"""The visual axis: each sample's visual tokens in order, right-padded to the longest sample."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class VisualAxis:
    """Where the visual tokens of a batch are.

    Attributes:
        mask: Which entries are real, bool ``[batch, n_visual]``.
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
        """The axis of rows of which some are visual tokens.

        Args:
            is_visual: Which rows are visual tokens, bool ``[batch, rows]``.
            image: Image of each row, long ``[batch, rows]``.
            size: The most visual tokens of a sample; a host integer, so that nothing waits for the device.
            positions: Position of each row in the unpruned sequence, long ``[batch, rows]``; None while it is whole.
        """
        order = (~is_visual).int().argsort(dim=1, stable=True)[:, :size]
        mask = is_visual.gather(1, order)
        rows = order.masked_fill(~mask, 0)
        # row 0 stands in for entries without a token; in a ragged batch it may itself hold nothing (-1)
        where = rows if positions is None else positions.gather(1, rows).masked_fill(~mask, 0)
        return cls(mask, rows, where, image.gather(1, order).masked_fill(~mask, -1))

    def gather(self, values: Tensor) -> Tensor:
        """Values of the rows ``[batch, rows, ...]`` on the axis, ``[batch, n_visual, ...]``."""
        index = self.rows.reshape(*self.rows.shape, *([1] * (values.dim() - 2)))
        return values.gather(1, index.expand(-1, -1, *values.shape[2:]))
