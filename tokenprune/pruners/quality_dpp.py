"""Diversity weighted by any score: a determinantal point process on the features of the vision tower."""

from typing import Annotated

from pydantic import Field

from tokenprune.core.component import FromRegistry
from tokenprune.core.tunable import Tunable, TunableLayer
from tokenprune.flops.decoder import Shape
from tokenprune.ops.cosine import self_similarity
from tokenprune.ops.dpp import greedy_map, standard_weights
from tokenprune.pruners.base import Pruner, Selection
from tokenprune.scorers.base import Scorer
from tokenprune.signals.context import PruneContext
from tokenprune.signals.signal_reader import TowerLayerNumber


class QualityDpp(Pruner):
    """Greedy MAP inference of a determinantal point process (DPP) with a scorer as quality, image by image.

    The kernel is ``w_i cos(i, j) w_j`` with ``w = exp(weight z)``, where ``z`` is the score minus its mean, divided by
    its standard deviation, within the image. So a weight means the same for every scorer, whatever the unit of its
    scores. Ties keep the earlier position. When every token that is left is a linear combination of kept tokens (gains
    up to 1e-5 of the largest), the earliest tokens fill the quota.

    :class:`tokenprune.pruners.dpp.Dpp` has CDPruner's weights instead, which scale the score from 0 to 1.

    Source: the decomposition of a DPP into quality and diversity is that of "Determinantal point processes for machine
    learning", arXiv 1207.6083, section 3.1. Its use with the matrix entropy is ours.

    Attributes:
        quality: Scores the tokens. Only differences within an image matter.
        weight: Weight of the quality against diversity. With 0 only diversity counts.
        tower_layer: Layer of the vision tower whose features are compared; negative from the end. None compares the
            hidden states that enter the stage: before layer 0 these are the projected features.
    """

    quality: Annotated[Scorer, FromRegistry("scorers")]
    weight: Annotated[float, Tunable(0.0, 0.3, 0.6)] = Field(default=0.3, ge=0)
    tower_layer: Annotated[TowerLayerNumber | None, TunableLayer(2 / 3, 1.0)] = -1

    def select(self, ctx: PruneContext) -> Selection:
        """See :meth:`tokenprune.pruners.base.Pruner.select`."""
        features = ctx.hidden if self.tower_layer is None else ctx.vision(self.tower_layer).features
        ctx.check_finite(features.sum(-1, dtype=features.dtype).float(), type(self).__name__)
        images = ctx.per_image
        scores = self.quality.checked(ctx)
        weights = standard_weights(images.split(scores), images.valid, self.weight)
        kernel = self_similarity(images.split(features)).mul_(weights[:, :, None]).mul_(weights[:, None, :])
        keep = greedy_map(kernel, images.valid, images.quotas, images.max_quota)
        return Selection(keep=images.join(keep), scores=scores)

    def flops(self, shape: Shape, visual: int, tokens: int) -> int:
        """The matrix of cosines, counted at the decoder's width, and the quality.

        The width is an upper bound for features of a tower, as towers are narrower. The Cholesky steps depend on the
        budget and are not counted.
        """
        return 2 * visual**2 * shape.width + self.quality.flops(shape, visual, tokens)
