"""What a vision tower's attention says of its patches, without an attention map of all heads at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

_ROWS = 64  # query rows at a time: no [heads, n, n] map of a large image


@dataclass(frozen=True)
class TowerLayer:
    """Query and key states of one layer of a vision tower, image by image.

    What it tells is by *feature*: what enters the prompt as one visual token. Where a projector merges or pools several
    patches to one feature (``cells``), a feature's value is the mean over its patches, for attention as for keys.

    Attributes:
        query: ``[images, tokens, heads, head_dim]``, as they enter the dot product.
        key: The same of the keys.
        classes: Tokens in front that stand for no patch (the class token), 0 if the tower has none.
        scaling: The factor on the dot products.
        blocks: Where tokens of many images are in a row (``images`` is 1), ``(tokens, tokens of the image or frame)``
            of each run of tokens that see each other: an image, a frame or a window. None: an image is one such run.
        seen: Tokens that are no padding, bool ``[images, tokens]``: the others neither pay nor receive attention.
        cells: The patches of each feature, long ``[features, merged]``, numbered over all images, class tokens left
            out. None: every patch is a feature.
        plain_key: Keys before the rotary embedding, as ``key``; None where the tower has no rotary embedding.
        shares: How much of each of its patches a feature is, ``[features, merged]``, where it is not their mean: a
            feature that is no patch at all (the end of a row) is nothing of any.
    """

    query: Tensor
    key: Tensor
    classes: int
    scaling: float
    blocks: Sequence[tuple[int, int]] | None = None
    seen: Tensor | None = None
    cells: Tensor | None = None
    plain_key: Tensor | None = None
    shares: Tensor | None = None

    @property
    def features(self) -> int:
        """How many features the layer tells of."""
        return self.key.shape[0] * (self.key.shape[1] - self.classes) if self.cells is None else len(self.cells)

    @cached_property
    def attention(self) -> Tensor:
        """Attention that each feature receives, mean over heads, float32 ``[images, patches]`` (or ``[1, features]``).

        From the class token where there is one, else as ``received``.
        """
        return self._received(self.query[:, :1]) if self.classes else self.received

    @cached_property
    def received(self) -> Tensor:
        """Attention that each feature receives from all tokens on average, mean over heads, as ``attention``.

        Tokens of another window of the same image, which cannot see the patch, count as paying none.
        """
        return self._received(self.query)

    @cached_property
    def mean_key(self) -> Tensor:
        """Keys before rotary embedding, mean over heads, float32 ``[images, patches, head_dim]`` (or by feature)."""
        key = self.key if self.plain_key is None else self.plain_key
        return self._merged(key[:, self.classes :].float().mean(2))

    def _merged(self, values: Tensor) -> Tensor:
        if self.cells is None:
            return values
        found = values.flatten(0, 1)[self.cells]
        if self.shares is None:
            return found.mean(1)[None]
        return (found * self.shares.view(*self.shares.shape, *[1] * (found.dim() - 2))).sum(1)[None]

    def _received(self, query: Tensor) -> Tensor:
        if self.blocks is None:
            payers = query.shape[1] if self.seen is None else self.seen[:, : query.shape[1]].sum(1, keepdim=True)
            total = _paid(query, self.key, self.scaling, self.seen) / payers
            return self._merged(total[:, self.classes :])
        lengths, wholes = torch.tensor(self.blocks).unbind(1)
        starts = lengths.cumsum(0) - lengths
        total = torch.zeros(query.shape[1], device=query.device)
        for length in sorted(set(lengths.tolist())):  # windows of one size at once
            chosen = lengths == length
            index = (starts[chosen, None] + torch.arange(length)).to(query.device)
            paid = _paid(query[0, index], self.key[0, index], self.scaling)
            total[index] = paid / wholes[chosen, None].to(query.device)
        return self._merged(total[None])


def _paid(query: Tensor, key: Tensor, scaling: float, seen: Tensor | None = None) -> Tensor:
    """Attention that each token gets from all queries together, mean over heads, float32 ``[images, tokens]``."""
    key = key.float().permute(0, 2, 3, 1)
    total = key.new_zeros(key.shape[0], key.shape[-1])
    for start in range(0, query.shape[1], _ROWS):
        rows = query[:, start : start + _ROWS]
        logits = rows.float().transpose(1, 2) @ key * scaling
        if seen is not None:
            logits = logits.masked_fill(~seen[:, None, None], float("-inf"))
        weights = logits.softmax(-1).mean(1)
        total += (weights if seen is None else weights * seen[:, start : start + _ROWS, None]).sum(1)
    return total


@dataclass(frozen=True)
class TowerRuns:
    """The same layer in several runs of the tower (one for images, one for videos): their features in a row.

    Attributes:
        runs: What each showed.
    """

    runs: Sequence[TowerLayer]

    @property
    def features(self) -> int:
        """See :class:`TowerLayer`."""
        return sum(run.features for run in self.runs)

    @cached_property
    def attention(self) -> Tensor:
        """See :class:`TowerLayer`; float32 ``[1, features]``, as the others."""
        return torch.cat([run.attention.flatten(0, 1) for run in self.runs])[None]

    @cached_property
    def received(self) -> Tensor:
        """See :class:`TowerLayer`."""
        return torch.cat([run.received.flatten(0, 1) for run in self.runs])[None]

    @cached_property
    def mean_key(self) -> Tensor:
        """See :class:`TowerLayer`."""
        return torch.cat([run.mean_key.flatten(0, 1) for run in self.runs])[None]


def cells(rows: int, columns: int, side: int) -> Tensor:
    """The patches of each ``side x side`` cell of a grid, row by row, long ``[cells, side * side]``, on the host.

    Rows and columns at the end that fill no cell are left out, as pooling and unfolding do.
    """
    grid = torch.arange(rows * columns).view(rows, columns)[: rows // side * side, : columns // side * side]
    found: Tensor = grid.unflatten(1, (-1, side)).unflatten(0, (-1, side)).transpose(1, 2).reshape(-1, side * side)
    return found


def scaled(rows: int, columns: int, to_rows: int, to_columns: int) -> tuple[Tensor, Tensor]:
    """What bilinear scaling makes of a grid (``torch.nn.functional.interpolate``, corners not aligned), on the host.

    Args:
        rows: Rows of the grid, numbered row by row.
        columns: Its columns.
        to_rows: Rows of the scaled grid.
        to_columns: Its columns.

    Returns:
        The four cells that each cell of the scaled grid is made of, long ``[to_rows * to_columns, 4]``, and their
        shares, float32; at the same size a cell is wholly itself.
    """

    def axis(size: int, to_size: int) -> tuple[Tensor, Tensor]:
        centre = ((torch.arange(to_size) + 0.5) * (size / to_size) - 0.5).clamp(min=0)
        first = centre.floor().long()
        part = centre - first
        return torch.stack([first, (first + 1).clamp(max=size - 1)], 1), torch.stack([1 - part, part], 1)

    (row, of_row), (column, of_column) = axis(rows, to_rows), axis(columns, to_columns)
    cell = row[:, None, :, None] * columns + column[None, :, None, :]
    share = of_row[:, None, :, None] * of_column[None, :, None, :]
    return cell.reshape(-1, 4), share.reshape(-1, 4)


def windows(grids: Sequence[tuple[int, int, int]], side: int) -> tuple[Tensor, list[int]]:
    """Order the cells of some grids window by window (Qwen2.5-VL).

    Args:
        grids: Frames, rows and columns of cells of every image or video.
        side: Cells on a side of a window; windows at the right and lower edge are smaller.

    Returns:
        The cell at each place, long ``[cells]``, numbered over all grids, and the cells of each window.
    """
    order, lengths, before = [], [], 0
    for frames, rows, columns in grids:
        across = -(-columns // side)
        frame, row, column = torch.cartesian_prod(*map(torch.arange, (frames, rows, columns))).view(-1, 3).unbind(1)
        window = (frame * -(-rows // side) + row // side) * across + column // side
        order.append(window.argsort(stable=True) + before)
        lengths += window.bincount().tolist()
        before += len(window)
    return torch.cat(order), lengths


def on_visual_axis(values: Tensor, order: Tensor, visual_mask: Tensor) -> Tensor:
    """Bring values of features to the visual tokens that they became.

    Args:
        values: ``[images, patches, ...]``; image by image, in the order in which features enter the prompt.
        order: Number of each visual token among all features of the batch, long ``[batch, n_visual]``.
        visual_mask: Which entries of the visual axis are real, bool ``[batch, n_visual]``.

    Returns:
        ``[batch, n_visual, ...]``, 0 where padding.
    """
    flat = values.flatten(0, 1)
    found = flat[order.clamp(0, flat.shape[0] - 1)]
    return torch.where(visual_mask.view(*visual_mask.shape, *[1] * (found.dim() - 2)), found, 0.0)
