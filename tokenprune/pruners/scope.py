"""SCOPE's selection: salient tokens that cover the image."""

from __future__ import annotations

from pydantic import Field

from tokenprune.context import PruneContext
from tokenprune.flops import Shape
from tokenprune.ops.cosine import self_similarity
from tokenprune.ops.coverage import greedy_coverage
from tokenprune.pruners.base import Pruner, Selection
from tokenprune.reader import TowerLayerNumber


class Scope(Pruner):
    """Greedy coverage of an image by its kept tokens; every gain is weighted with the attention in the vision tower.

    The gain of token i is ``sum_j max(0, cos(i, j) - best_j) * attention_i^alpha``; ``best_j`` is the cosine of token j
    to the most similar kept token, at least 0. Images are covered one by one. Ties (gains equal up to 1e-5 of the
    largest) keep the earlier position. A token counts as covered if its ``best_j`` would grow by at most 1e-6. When all
    tokens are covered, the earliest tokens fill the quota.

    Differs from the published code: cosines are those of the features that the language model gets (the projected ones
    at layer 0); the published code uses the tower's features before the projector. Several images have quotas of their
    own, in proportion to their tokens.

    Source: "SCOPE: Saliency-Coverage Oriented Token Pruning for Efficient Multimodel LLMs", arXiv 2510.24214.

    Attributes:
        alpha: Exponent of the attention; with 0 only coverage counts.
        layer: Layer of the tower whose attention is the saliency; negative from the end.
    """

    alpha: float = Field(default=1.0, ge=0)
    layer: TowerLayerNumber = -2

    def select(self, ctx: PruneContext) -> Selection:
        """See :meth:`tokenprune.pruners.base.Pruner.select`."""
        saliency = ctx.vision(self.layer).attention
        ctx.check_finite(ctx.hidden.abs().amax(-1) + saliency, type(self).__name__)
        images = ctx.per_image
        similarity = self_similarity(images.split(ctx.hidden))
        weight = images.split(saliency) ** self.alpha
        return Selection(
            keep=images.join(greedy_coverage(similarity, weight, images.valid, images.quotas, images.max_quota))
        )

    def flops(self, shape: Shape, visual: int, tokens: int) -> int:
        """The matrix of cosines. Sums, comparisons and the attention of the tower are not counted."""
        return 2 * visual**2 * shape.width
