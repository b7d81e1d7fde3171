"""Attention and states of a vision tower's layer, per feature; the full attention map is never held in memory."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from tokenprune.errors import ScoreError, UnsupportedFeatureError

#: States of a layer that are read head by head.
StateSource = Literal["query", "key", "value", "hidden"]

_ROWS = 64  # query rows at a time, so that a large image needs no [heads, n, n] map


@dataclass(frozen=True)
class TowerLayer:
    """States of one layer of a vision tower, image by image.

    Results are per *feature*, which enters the prompt as one visual token. Where a projector merges or pools several
    patches to one feature (``feature_patches``), the feature has the mean over its patches, of attention as of states.

    Attributes:
        query: ``[images, tokens, heads, head_dim]``, as they enter the dot product.
        key: Keys, shaped likewise.
        class_tokens: Tokens in front that are not patches (the class token), 0 if the tower has none.
        scaling: The factor on the dot products.
        blocks: Where the tokens of many images follow each other in one row (``images`` is 1), one entry for each run
            of tokens that attend to each other (an image, a frame or a window): its tokens, and the tokens of the image
            or frame that it belongs to. None: every image is one such run.
        unpadded: Tokens that are not padding, bool ``[images, tokens]``. Padding neither pays nor receives attention.
        feature_patches: The patches of each feature, long ``[features, merged]``, numbered over all images without
            class tokens. None: every patch is a feature.
        plain_key: Keys before the rotary embedding, as ``key``; None where the tower has no rotary embedding.
        plain_query: Queries before the rotary embedding, likewise.
        value: Value states, ``[images, tokens, heads, head_dim]``; None where they are not read.
        patch_weights: Weight of each patch in its feature, ``[features, merged]``, where it is not the mean. Newline
            features have weight zero everywhere.
        output: States that leave the layer, ``[images, tokens, width]``; None where they are not read.
        tiles: The tower's image that each feature is made of (the tile of an image, the frame of a video), long
            ``[features]``, on the host; -1 for a feature made of no patch. None where the tower gets whole images.
    """

    query: Tensor
    key: Tensor
    class_tokens: int
    scaling: float
    blocks: Sequence[tuple[int, int]] | None = None
    unpadded: Tensor | None = None
    feature_patches: Tensor | None = None
    plain_key: Tensor | None = None
    plain_query: Tensor | None = None
    value: Tensor | None = None
    patch_weights: Tensor | None = None
    output: Tensor | None = None
    tiles: Tensor | None = None

    @property
    def features(self) -> int:
        """Number of features."""
        if self.feature_patches is not None:
            return len(self.feature_patches)
        return self.key.shape[0] * (self.key.shape[1] - self.class_tokens)

    @cached_property
    def attention(self) -> Tensor:
        """Attention that each feature receives, mean over heads, float32 ``[images, patches]`` (or ``[1, features]``).

        From the class token where there is one, else as ``received``.
        """
        return self._attention_from(self.query[:, :1]) if self.class_tokens else self.received

    @cached_property
    def received(self) -> Tensor:
        """Attention that each feature receives from all tokens on average, mean over heads, as ``attention``.

        Tokens in another window of the same image cannot attend to the patch; they count as paying zero.
        """
        return self._attention_from(self.query)

    @cached_property
    def mean_key(self) -> Tensor:
        """Keys before rotary embedding, mean over heads, float32 ``[images, patches, head_dim]`` (or by feature)."""
        key = self.key if self.plain_key is None else self.plain_key
        return self._by_feature(key[:, self.class_tokens :].float().mean(2))

    @cached_property
    def mean_output(self) -> Tensor:
        """States that leave the layer, float32 ``[images, patches, width]`` (or by feature).

        Raises:
            ValueError: They were not recorded.
        """
        if self.output is None:
            raise ValueError("the states that leave this layer were not recorded")
        return self._by_feature(self.output[:, self.class_tokens :].float())

    def states(self, source: StateSource) -> Tensor:
        """States by head, float32 ``[images, patches, heads, head_dim]`` (or ``[1, features, heads, head_dim]``).

        Args:
            source: ``query``, ``key`` and ``value`` are those before the rotary embedding. ``hidden`` are the states
                that leave the layer, split into as many slices as the tower has heads.

        Raises:
            ScoreError: There are no such states, or they were not recorded.
            UnsupportedFeatureError: The hidden states cannot be split into that many slices.
        """
        recorded = {
            "query": self.query if self.plain_query is None else self.plain_query,
            "key": self.key if self.plain_key is None else self.plain_key,
            "value": self.value,
            "hidden": self.output,
        }
        found = recorded.get(source)
        if found is None:
            problem = "were not recorded" if source in recorded else "do not exist"
            fix = "add 'tower_value' to the component's needs" if source == "value" else f"read {', '.join(recorded)}"
            raise ScoreError(f"{source} states of the vision tower {problem}", fix)
        if source == "hidden":
            found = split_heads(found, self.query.shape[2])
        return self._by_feature(found[:, self.class_tokens :].float())

    def _by_feature(self, values: Tensor) -> Tensor:
        """Values of patches ``[images, patches, ...]`` as values of features."""
        if self.feature_patches is None:
            return values
        picked = values.flatten(0, 1)[self.feature_patches]
        if self.patch_weights is None:
            return picked.mean(1)[None]
        weights = self.patch_weights.view(*self.patch_weights.shape, *[1] * (picked.dim() - 2))
        return (picked * weights).sum(1)[None]

    def _attention_from(self, query: Tensor) -> Tensor:
        """Mean attention that features receive from some query rows."""
        if self.blocks is None:
            payers: int | Tensor = query.shape[1]
            if self.unpadded is not None:
                payers = self.unpadded[:, : query.shape[1]].sum(1, keepdim=True)
            total = _total_attention(query, self.key, self.scaling, self.unpadded) / payers
            return self._by_feature(total[:, self.class_tokens :])
        lengths, image_lengths = torch.tensor(self.blocks).unbind(1)
        starts = lengths.cumsum(0) - lengths
        mean = torch.zeros(query.shape[1], device=query.device)
        for length in sorted(set(lengths.tolist())):  # all windows of one size at once
            chosen = lengths == length
            index = (starts[chosen, None] + torch.arange(length)).to(query.device)
            total = _total_attention(query[0, index], self.key[0, index], self.scaling)
            mean[index] = total / image_lengths[chosen, None].to(query.device)
        return self._by_feature(mean[None])


def _total_attention(query: Tensor, key: Tensor, scaling: float, unpadded: Tensor | None = None) -> Tensor:
    """Attention that each token receives from all queries together, mean over heads, float32 ``[images, tokens]``."""
    key = key.float().permute(0, 2, 3, 1)
    total = key.new_zeros(key.shape[0], key.shape[-1])
    for start in range(0, query.shape[1], _ROWS):
        rows = query[:, start : start + _ROWS]
        logits = rows.float().transpose(1, 2) @ key * scaling
        if unpadded is not None:
            logits = logits.masked_fill(~unpadded[:, None, None], float("-inf"))
        weights = logits.softmax(-1).mean(1)
        total += (weights if unpadded is None else weights * unpadded[:, start : start + _ROWS, None]).sum(1)
    return total


@dataclass(frozen=True)
class TowerRuns:
    """One layer in several runs of the tower (one for images, one for videos): their features in a row.

    Attributes:
        runs: The layer in each run.
    """

    runs: Sequence[TowerLayer]

    @property
    def features(self) -> int:
        """See :class:`TowerLayer`."""
        return sum(run.features for run in self.runs)

    @cached_property
    def attention(self) -> Tensor:
        """See :class:`TowerLayer`; float32 ``[1, features]``, like the other properties."""
        return torch.cat([run.attention.flatten(0, 1) for run in self.runs])[None]

    @cached_property
    def received(self) -> Tensor:
        """See :class:`TowerLayer`."""
        return torch.cat([run.received.flatten(0, 1) for run in self.runs])[None]

    @cached_property
    def mean_key(self) -> Tensor:
        """See :class:`TowerLayer`."""
        return torch.cat([run.mean_key.flatten(0, 1) for run in self.runs])[None]

    def states(self, source: StateSource) -> Tensor:
        """See :meth:`TowerLayer.states`."""
        return torch.cat([run.states(source).flatten(0, 1) for run in self.runs])[None]

    @property
    def tiles(self) -> Tensor | None:
        """See :class:`TowerLayer`.

        Raises:
            UnsupportedFeatureError: Images and videos have tiles: which sample's they are is known on the device only.
        """
        if all(run.tiles is None for run in self.runs):
            return None
        raise UnsupportedFeatureError(
            "a batch with images and videos cannot be divided tile by tile", "use per: image, or separate batches"
        )

    @cached_property
    def mean_output(self) -> Tensor:
        """See :class:`TowerLayer`."""
        return torch.cat([run.mean_output.flatten(0, 1) for run in self.runs])[None]


def split_heads(states: Tensor, heads: int) -> Tensor:
    """Split hidden states ``[..., width]`` into one slice per head, ``[..., heads, width / heads]``.

    Raises:
        UnsupportedFeatureError: The width is no multiple of the heads.
    """
    if states.shape[-1] % heads:
        raise UnsupportedFeatureError(
            f"hidden states of width {states.shape[-1]} cannot be split into the vision tower's {heads} heads",
            "read its query, key or value states",
        )
    split: Tensor = states.unflatten(-1, (heads, -1))
    return split


def cell_patches(rows: int, columns: int, side: int) -> Tensor:
    """The patches of each ``side x side`` cell of a grid, row by row, long ``[cells, side * side]``, on the host.

    Rows and columns at the end that fill no cell are left out, as pooling and unfolding do.
    """
    grid = torch.arange(rows * columns).view(rows, columns)[: rows // side * side, : columns // side * side]
    patches: Tensor = grid.unflatten(1, (-1, side)).unflatten(0, (-1, side)).transpose(1, 2).reshape(-1, side * side)
    return patches


def bilinear_patches(rows: int, columns: int, to_rows: int, to_columns: int) -> tuple[Tensor, Tensor]:
    """The patches that bilinear scaling of a grid makes each feature of, on the host.

    As ``torch.nn.functional.interpolate`` does it, with corners not aligned.

    Args:
        rows: Rows of the grid, whose patches are numbered row by row.
        columns: Its columns.
        to_rows: Rows of the scaled grid.
        to_columns: Its columns.

    Returns:
        The four patches of each feature of the scaled grid, long ``[to_rows * to_columns, 4]``, and their weights,
        float32. At the same size, the first patch has weight one.
    """

    def axis(size: int, to_size: int) -> tuple[Tensor, Tensor]:
        centre = ((torch.arange(to_size) + 0.5) * (size / to_size) - 0.5).clamp(min=0)
        first = centre.floor().long()
        fraction = centre - first
        return torch.stack([first, (first + 1).clamp(max=size - 1)], 1), torch.stack([1 - fraction, fraction], 1)

    (row, row_weight), (column, column_weight) = axis(rows, to_rows), axis(columns, to_columns)
    patches = row[:, None, :, None] * columns + column[None, :, None, :]
    weights = row_weight[:, None, :, None] * column_weight[None, :, None, :]
    return patches.reshape(-1, 4), weights.reshape(-1, 4)


def window_order(grids: Sequence[tuple[int, int, int]], side: int) -> tuple[Tensor, list[int]]:
    """Order the cells of some grids window by window (Qwen2.5-VL).

    Args:
        grids: Frames, rows and columns of cells of every image or video.
        side: Cells on a side of a window; windows at the right and lower edge are smaller.

    Returns:
        The cells in the order of their windows, long ``[cells]``, numbered over all grids; and the number of cells of
        each window.
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
    """Map values of features to the visual tokens that the features became.

    Args:
        values: ``[images, patches, ...]``; image by image, in the order in which features enter the prompt.
        order: Number of each visual token among all features of the batch, long ``[batch, n_visual]``.
        visual_mask: Entries of the visual axis are real, bool ``[batch, n_visual]``.

    Returns:
        ``[batch, n_visual, ...]``, 0 where padding.
    """
    flat = values.flatten(0, 1)
    picked = flat[order.clamp(0, flat.shape[0] - 1)]
    return torch.where(visual_mask.view(*visual_mask.shape, *[1] * (picked.dim() - 2)), picked, 0.0)
