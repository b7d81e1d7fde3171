"""Keep the visual tokens that differ most from the average of their image."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from tokenprune.context import PruneContext
from tokenprune.scorers.base import Scorer


class CentroidDistance(Scorer):
    """Distance of each visual token's hidden state from the mean over its own image.

    Tokens of a uniform background lie near the mean, those of a small object far from it. A null model rather than
    a method: it knows nothing of the question.

    Attributes:
        metric: ``euclidean``, or ``cosine`` (one minus the similarity), which ignores the norms of the states.
    """

    metric: Literal["euclidean", "cosine"] = "euclidean"

    def score(self, ctx: PruneContext) -> Tensor:
        """See :meth:`tokenprune.scorers.base.Scorer.score`."""
        hidden = ctx.hidden.float()  # distances between bf16 numbers would tie
        means = image_means(hidden, ctx.groups)
        if self.metric == "cosine":
            return 1 - cosine_similarity(hidden, means, dim=-1)
        return (hidden - means).square().sum(-1).sqrt()


def image_means(hidden: Tensor, groups: Tensor) -> Tensor:
    """The mean over its image, for every token.

    Args:
        hidden: ``[batch, n_visual, dim]``.
        groups: Image of each token, long ``[batch, n_visual]``; -1 where padding.

    Returns:
        ``[batch, n_visual, dim]``; rows of padding hold anything.
    """
    real = (groups >= 0).to(hidden.dtype)
    slot = groups.clamp(min=0)  # an image's number is less than n_visual, so sums need no further axis
    wide = slot[:, :, None].expand_as(hidden)
    sums = torch.zeros_like(hidden).scatter_add(1, wide, hidden * real[:, :, None])
    counts = torch.zeros_like(real).scatter_add(1, slot, real).clamp(min=1)
    return sums.gather(1, wide) / counts.gather(1, slot)[:, :, None]
