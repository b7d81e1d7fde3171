"""CDPruner's selection: tokens that are relevant and unlike each other, by a determinantal point process."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from tokenprune.component import FromRegistry
from tokenprune.context import PruneContext
from tokenprune.flops import Shape
from tokenprune.ops.cosine import self_similarity
from tokenprune.ops.dpp import greedy_map, relevance_weights
from tokenprune.pruners.base import Pruner, Selection
from tokenprune.scorers.base import Scorer


class Dpp(Pruner):
    """Greedy MAP of a DPP with the kernel ``w_i cos(i, j) w_j``, image by image, where ``w`` grows with relevance.

    The cosines are of hidden states: of the projected visual features at layer 0, as in the paper. The relevance is
    scaled to 0..1 within each image. Ties keep the earlier position; when what is left is a combination of what is
    kept (gains up to 1e-5 of the largest), the earliest tokens fill the quota.

    The authors' LLaVA code scores relevance by CLIP's text tower, which a Hugging Face LLaVA does not have, and uses
    it as ``w`` without ``theta``. **That variant is not here**: any scorer can be the ``relevance``, so it is one file
    more for those who load the tower, with ``theta: null``. The named method ``cdpruner`` uses the variant of OpenVINO
    GenAI that works on every family (scorer ``instruction``, theta 0.5). The authors' code keeps a number per crop of
    an image and its row separators besides; here the whole image has one quota, and it is exact.

    Source: "Beyond Attention or Similarity: Maximizing Conditional Diversity for Token Pruning in MLLMs",
    arXiv 2506.10967.

    Attributes:
        relevance: How relevant a token is to the instruction; only differences within an image matter.
        theta: Share of relevance against diversity: ``w = exp(theta / (2 (1 - theta)) relevance)``; 0 is diversity
            alone, None takes the scaled relevance itself as ``w``.
    """

    relevance: Annotated[Scorer, FromRegistry("scorers")]
    theta: float | None = Field(default=0.5, ge=0, lt=1)

    def select(self, ctx: PruneContext) -> Selection:
        """See :meth:`tokenprune.pruners.base.Pruner.select`."""
        ctx.check_finite(ctx.hidden.abs().amax(-1), type(self).__name__)
        images = ctx.per_image
        scores = images.split(self.relevance.checked(ctx))
        weights = relevance_weights(scores, images.valid, self.theta)
        states = images.split(ctx.hidden)
        kernel = weights[:, :, None] * self_similarity(states) * weights[:, None, :]
        return Selection(keep=images.join(greedy_map(kernel, images.valid, images.quotas, images.max_quota)))

    def flops(self, shape: Shape, visual: int, tokens: int) -> int:
        """The matrix of cosines, and the relevance; the Cholesky steps depend on the budget and are not counted."""
        return 2 * visual**2 * shape.width + self.relevance.flops(shape, visual, tokens)
