"""DivPrune's selection: tokens that are far from each other (max-min diversity)."""

from typing import Annotated

import torch
from pydantic import Field

from tokenprune.core.component import FromRegistry
from tokenprune.flops.decoder import Shape
from tokenprune.ops.cosine import self_similarity
from tokenprune.ops.greedy import max_min
from tokenprune.ops.topk import topk_by_group
from tokenprune.pruners.base import Pruner, Selection
from tokenprune.scorers.base import Scorer
from tokenprune.signals.context import PruneContext


class MaxMin(Pruner):
    """Greedy max-min diversity of the hidden states under the cosine distance, image by image.

    At layer 0 the hidden states are the projected visual features, as in the paper. The first kept token is the one
    whose nearest other token is farthest. (The published code finds it with the second-smallest entry of each column of
    the distance matrix; the smallest is the distance of a token to itself.) Every further token is the one whose
    nearest kept token is farthest. Ties keep the earlier position; distances up to 1e-6 count as 0.

    Differs from the published code: a kept token cannot be chosen again when only duplicates are left, and the
    budget rounds the count down, not to the nearest integer. Row separators of a model (LLaVA-NeXT) are treated as
    ordinary tokens. Distances are computed in float32; that code computes them in the model's half precision, where
    rounding decides close choices (``benchmarks/results/half_precision.md``).

    Source: "DivPrune: Diversity-based Visual Token Pruning for Large Multimodal Models", arXiv 2503.02175.

    Attributes:
        pool: A scorer that limits the candidates to an image's best tokens; None for all tokens. Not in the paper.
        pool_factor: Candidates per kept token; their number is rounded down. With 1 the scorer alone decides.
    """

    pool: Annotated[Scorer, FromRegistry("scorers")] | None = None
    pool_factor: float = Field(default=2.0, ge=1)

    def select(self, ctx: PruneContext) -> Selection:
        """See :meth:`tokenprune.pruners.base.Pruner.select`."""
        ctx.check_finite(ctx.hidden.sum(-1, dtype=torch.float32), type(self).__name__)
        images = ctx.per_image
        candidates, scores = images.valid, None
        if self.pool is not None:
            scores = self.pool.checked(ctx)
            pool_sizes = (ctx.quotas * self.pool_factor).long()
            candidates = candidates & images.split(topk_by_group(scores, ctx.groups, pool_sizes))
        states = images.split(ctx.hidden)
        distance = self_similarity(states).neg_().add_(1)
        keep = max_min(distance, candidates, images.quotas, images.max_quota)
        return Selection(keep=images.join(keep), scores=scores)

    def flops(self, shape: Shape, visual: int, tokens: int) -> int:
        """The matrix of cosines, and the pool's scorer. Comparisons are not counted."""
        pool = self.pool.flops(shape, visual, tokens) if self.pool else 0
        return 2 * visual**2 * shape.width + pool
