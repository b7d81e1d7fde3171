"""SCOPE's selection: salient tokens that cover the image."""

from typing import Annotated, Literal

from pydantic import Field

from tokenprune.core.tunable import Tunable, TunableLayer
from tokenprune.flops.decoder import Shape
from tokenprune.ops.cosine import self_similarity
from tokenprune.ops.greedy import greedy_coverage
from tokenprune.pruners.base import Pruner, Selection
from tokenprune.signals.context import Per, PruneContext
from tokenprune.signals.signal_reader import TowerLayerNumber


class Scope(Pruner):
    """Greedy coverage of an image by its kept tokens; every gain is weighted with the attention in the vision tower.

    The gain of token i is ``sum_j max(0, cos(i, j) - best_j) * attention_i^alpha``; ``best_j`` is the cosine of token j
    to the most similar kept token, at least 0. Attention is the class token's (in a tower without one: the mean over
    all tokens), mean over heads. Cosines are those of the states that leave the same layer of the tower, before the
    projector, as in the published code. Images are covered one by one. Ties (gains equal up to 1e-5 of the largest)
    keep the earlier position. A token counts as covered if its ``best_j`` would grow by at most 1e-6. When all tokens
    are covered, the earliest tokens fill the quota.

    Differs from the published code: that code has no tolerance, so between tokens that would cover only each other
    rounding decides there. On LLaVA-NeXT that code keeps padding and drops the row separators; here padding is no
    token, and separators are chosen last. Several images have quotas of their own, in proportion to their tokens.

    Source: "SCOPE: Saliency-Coverage Oriented Token Pruning for Efficient Multimodel LLMs", arXiv 2510.24214.

    Attributes:
        alpha: Exponent of the attention; with 0 only coverage counts.
        layer: Layer of the tower whose attention is the saliency and whose features are compared; negative from the
            end.
        compare: ``tower`` compares the tower's features, ``projected`` the states that enter the language model.
        per: ``tile`` chooses in each tile of an image (LLaVA-NeXT), or frame of a video, by itself, as in the published
            code; ``image`` chooses in the whole image.
    """

    alpha: Annotated[float, Tunable(0.5, 1.0, 2.0)] = Field(default=1.0, ge=0)
    layer: Annotated[TowerLayerNumber, TunableLayer(2 / 3, 1.0)] = -2
    compare: Annotated[Literal["tower", "projected"], Tunable("tower", "projected")] = "tower"
    per: Per = "tile"

    def select(self, ctx: PruneContext) -> Selection:
        """See :meth:`tokenprune.pruners.base.Pruner.select`."""
        tower = ctx.vision(self.layer)
        features = tower.features if self.compare == "tower" else ctx.hidden
        ctx.check_finite(features.abs().amax(-1) + tower.attention, type(self).__name__)
        images = ctx.regions(self.per, self.layer)
        similarity = self_similarity(images.split(features))
        weight = images.split(tower.attention) ** self.alpha
        keep = greedy_coverage(similarity, weight, images.valid, images.quotas, images.max_quota)
        return Selection(keep=images.join(keep), scores=tower.attention)

    def flops(self, shape: Shape, visual: int, tokens: int) -> int:
        """The matrix of cosines, counted at the decoder's width: an upper bound, as towers are narrower.

        Sums, comparisons and the attention of the tower are not counted.
        """
        return 2 * visual**2 * shape.width
