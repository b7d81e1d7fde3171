"""Keep the visual tokens that differ most from the average of their image."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from tokenprune.authoring import PruneContext, Scorer, Tunable


class CentroidDistance(Scorer):
    """Distance of each visual token's hidden state from the mean over its own image.

    Tokens of a uniform background are near the mean; tokens of a small object are far from it. The score does not
    depend on the question, so this is a null model rather than a method.

    Attributes:
        metric: ``euclidean``, or ``cosine`` (one minus the cosine similarity), which ignores the norms of the states.
    """

    metric: Annotated[Literal["euclidean", "cosine"], Tunable("euclidean", "cosine")] = "euclidean"

    def score(self, ctx: PruneContext) -> Tensor:
        """See ``tokenprune.authoring.Scorer.score``."""
        hidden = ctx.hidden.float()  # many distances between bf16 numbers would be equal
        means = image_means(hidden, ctx.groups)
        if self.metric == "cosine":
            return 1 - cosine_similarity(hidden, means, dim=-1)
        return (hidden - means).square().sum(-1).sqrt()


def image_means(hidden: Tensor, groups: Tensor) -> Tensor:
    """Mean of the hidden states over each token's image.

    Args:
        hidden: ``[batch, n_visual, dim]``.
        groups: Image of each token, long ``[batch, n_visual]``; -1 for padding.

    Returns:
        ``[batch, n_visual, dim]``; entries of padding are undefined.
    """
    real = (groups >= 0).to(hidden.dtype)
    image = groups.clamp(min=0)  # an image's number is less than n_visual, so the sums fit on that axis
    index = image[:, :, None].expand_as(hidden)
    sums = torch.zeros_like(hidden).scatter_add(1, index, hidden * real[:, :, None])
    counts = torch.zeros_like(real).scatter_add(1, image, real).clamp(min=1)
    return sums.gather(1, index) / counts.gather(1, image)[:, :, None]
