"""What a vision tower's attention says of its patches, without an attention map of all heads at once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

_ROWS = 64  # query rows at a time: no [heads, n, n] map of a large image


@dataclass(frozen=True)
class TowerLayer:
    """Query and key states of one layer of a vision tower, image by image.

    Attributes:
        query: ``[images, tokens, heads, head_dim]``.
        key: The same of the keys.
        classes: Tokens in front that stand for no patch (the class token), 0 if the tower has none.
        scaling: The factor on the dot products.
    """

    query: Tensor
    key: Tensor
    classes: int
    scaling: float

    @cached_property
    def attention(self) -> Tensor:
        """Attention that each patch receives, mean over heads, float32 ``[images, patches]``.

        From the class token where there is one, else from all tokens on average.
        """
        return self._received(self.query[:, :1] if self.classes else self.query)

    @cached_property
    def received(self) -> Tensor:
        """Attention that each patch receives from all tokens on average, mean over heads, as ``attention``."""
        return self._received(self.query)

    def _received(self, query: Tensor) -> Tensor:
        key = self.key.float().permute(0, 2, 3, 1)
        total = key.new_zeros(key.shape[0], key.shape[-1])
        for rows in query.split(_ROWS, dim=1):
            logits = rows.float().transpose(1, 2) @ key * self.scaling
            total += logits.softmax(-1).mean(1).sum(1)
        return total[:, self.classes :] / query.shape[1]

    @cached_property
    def mean_key(self) -> Tensor:
        """Keys of the patches, mean over heads, float32 ``[images, patches, head_dim]``."""
        return self.key[:, self.classes :].float().mean(2)


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
