"""Images cut into crops of successive tokens, and a budget divided between the crops."""

import math

import torch
from torch import Tensor
from torch.nn.functional import normalize

from tokenprune.ops.gather import CHUNK, rows_at


class Crops:
    """The tokens of many images, each image cut into the same number of crops of successive tokens.

    Crop sizes differ by at most one; the larger crops come first. An image with fewer tokens than crops has empty
    crops at its end.

    Args:
        image_sizes: Tokens of each image, long ``[images]``.
        max_size: Largest of them, as a host integer.
        crops: Number of crops per image.
    """

    def __init__(self, image_sizes: Tensor, max_size: int, crops: int) -> None:
        self._max_size = max_size
        number = torch.arange(crops, device=image_sizes.device)
        base, remainder = image_sizes[:, None] // crops, image_sizes[:, None] % crops
        self.sizes: Tensor = base + (number < remainder)  #: Tokens of each crop, long ``[images, crops]``.
        place = torch.arange(math.ceil(max_size / crops), device=image_sizes.device)
        #: Entries of a crop are tokens, bool ``[images, crops, length]``.
        self.valid: Tensor = place < self.sizes[:, :, None]
        start = number * base + torch.minimum(number, remainder)
        self._index = (start[:, :, None] + place).clamp(max=max_size - 1)

    def split(self, states: Tensor) -> Tensor:
        """``[images, n, ...]`` as ``[images, crops, length, ...]``; padding holds arbitrary values."""
        return self._split(states, self._index)

    def self_similarity(self, states: Tensor) -> Tensor:
        """Cosines of the tokens of each crop to each other, float32 ``[images, crops, length, length]``.

        On the diagonal 1 up to rounding; NaN for a token with an entry that is NaN or infinite.

        Args:
            states: Floating ``[images, n, dim]``.
        """
        crops = max(1, CHUNK // (len(states) * self._index.shape[2] * states.shape[2]))
        parts = []
        for index in self._index.split(crops, dim=1):
            unit = normalize(self._split(states, index).float(), dim=-1)
            parts.append(unit @ unit.mT)
        return torch.cat(parts, dim=1)

    def _split(self, states: Tensor, index: Tensor) -> Tensor:
        return rows_at(states, index.flatten(1)).view(*index.shape, *states.shape[2:])

    def join(self, values: Tensor) -> Tensor:
        """``[images, crops, length]`` back as ``[images, n]``; 0 (False) where no crop has a token."""
        index = self._index.masked_fill(~self.valid, self._max_size).flatten(1)  # one extra column takes the padding
        flat = values.new_zeros(len(values), self._max_size + 1)
        return flat.scatter(1, index, values.flatten(1))[:, : self._max_size]


def similarity_variance(similarity: Tensor, valid: Tensor) -> Tensor:
    """Variance of each token's similarities to the other tokens of its crop, with the estimator of HoloV's code.

    A token's similarity to itself enters as 0. Mean and variance are sums over all tokens of the crop, divided by the
    number of tokens less one.

    Args:
        similarity: Floating ``[..., length, length]``.
        valid: Entries that are tokens, bool ``[..., length]``.

    Returns:
        Floating ``[..., length]``; 0 for padding and for a token that is alone.
    """
    padding = ~(valid[..., :, None] & valid[..., None, :])
    similarity = similarity.masked_fill(padding, 0.0)
    similarity.diagonal(dim1=-2, dim2=-1).fill_(0.0)
    others = (valid.sum(-1, keepdim=True) - 1).clamp(min=1)
    mean = similarity.sum(-1) / others
    squares = similarity.sub_(mean[..., None]).square_().masked_fill_(padding, 0.0)
    return squares.sum(-1) / others


def allocate(total: Tensor, weights: Tensor, capacity: Tensor, rounds: int | None = None) -> Tensor:
    """Divide a number of tokens between crops in proportion to weights, within each crop's capacity.

    Quotas are rounded down; the remainder goes one each to the largest weights (ties: the earlier crop). Tokens above
    a crop's capacity are divided by the same rule between the crops that are not full. No host-device synchronisation.

    Args:
        total: Tokens to divide for each image, long ``[images]``, at most the sum of its capacities.
        weights: Not negative, floating ``[images, crops]``.
        capacity: Tokens that each crop has, long ``[images, crops]``.
        rounds: Rounds that suffice, as a host integer: one more than the crops that can be filled. None: one per crop.

    Returns:
        Quota of each crop, long ``[images, crops]``; rows sum to ``total``.
    """
    weights = weights.clamp(min=torch.finfo(weights.dtype).tiny)
    quotas = torch.zeros_like(capacity)
    # every round that leaves a remainder fills at least one crop
    for _ in range(capacity.shape[1] if rounds is None else rounds):
        remaining = total - quotas.sum(1)
        open_weights = weights.masked_fill(quotas >= capacity, 0.0)
        weight_sum = open_weights.sum(1, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)
        extra = (remaining[:, None] * open_weights / weight_sum).floor().long()
        rank = open_weights.argsort(dim=1, descending=True, stable=True).argsort(1)
        extra += rank < (remaining - extra.sum(1))[:, None]
        quotas = torch.minimum(quotas + extra, capacity)
    return quotas
