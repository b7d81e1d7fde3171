"""The visual axis: each sample's visual tokens in order, right-padded to the longest sample."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tokenprune.ops.gather import rows_at


@dataclass(frozen=True)
class VisualAxis:
    """Maps the visual axis to the rows of a batch.

    Attributes:
        mask: Which entries are tokens and not padding, bool ``[batch, n_visual]``.
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
            is_visual: Which rows are visual tokens, bool ``[batch, rows]``.
            image: Image of each row, long ``[batch, rows]``.
            size: Length of the axis: the largest number of visual tokens of a sample. It is a host integer, so that
                nothing waits for the device.
            positions: Position of each row in the unpruned sequence, long ``[batch, rows]``; None if nothing has been
                dropped yet.
        """
        order = (~is_visual).int().argsort(dim=1, stable=True)[:, :size]
        mask = is_visual.gather(1, order)
        rows = order.masked_fill(~mask, 0)
        # padding entries point to row 0, which in a ragged batch may be padding itself (position -1)
        token_positions = rows if positions is None else positions.gather(1, rows).masked_fill(~mask, 0)
        return cls(mask, rows, token_positions, image.gather(1, order).masked_fill(~mask, -1))

    def gather(self, values: Tensor) -> Tensor:
        """Gather values of the rows, ``[batch, rows, ...]``, on the axis, ``[batch, n_visual, ...]``."""
        return rows_at(values, self.rows)
