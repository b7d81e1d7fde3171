"""EVS's selection: tokens that change little from frame to frame are dropped."""

from typing import ClassVar

import torch
from pydantic import Field

from tokenprune.flops.decoder import Shape
from tokenprune.ops.frames import best_of_each, best_overall, cosine_to
from tokenprune.ops.topk import floor_share
from tokenprune.pruners.base import Pruner, Selection
from tokenprune.signals.context import PruneContext

_NEW = 3.0  # more than any dissimilarity, which is at most 2


class Evs(Pruner):
    """Keep the tokens that differ most from the token at the same place of the grid in the previous frame (1 - cosine).

    Tokens without such a predecessor count as new and have the highest score: those of the first frame, row separators,
    and frames of another size. With the budget ``adaptive`` the count is the published one: ``floor(T (1 - rate))`` of
    T tokens, but at least all new tokens. Under a budget that states a number, exactly that number is kept, even if it
    is too small for the first frame. Ties keep the earlier position. Several images are frames of one video, and
    several videos follow each other as one; each image or video keeps at least its best token.

    EVS is a pruner and not a scorer because a budget does not know the size of a frame. It compares features, as
    the published code (vLLM) does; reviews of the paper describe a comparison of pixels. Differs from the published
    code: kept tokens have their original positions; a product that rounding leaves just below an integer counts as
    that integer; a sample without a second frame is an error, where vLLM does not prune images. That code computes
    the cosines in the model's precision, and in half precision the small changes of a still scene drown in
    rounding, so that its ranking is partly that of positions (``benchmarks/results/half_precision.md``). Here
    cosines are float32 (of features as the model has them).

    Source: "Efficient Video Sampling: Pruning Temporally Redundant Tokens for Faster VLM Inference",
    arXiv 2510.14624.

    Attributes:
        rate: Share of the tokens to drop, for the budget ``adaptive``.
    """

    adaptive: ClassVar[bool] = True
    shares_quota_itself: ClassVar[bool] = True

    rate: float = Field(default=0.75, ge=0, lt=1)

    @property
    def needs(self) -> frozenset[str]:
        """Hidden states, and the token grid."""
        return frozenset({"hidden", "grid"})

    def select(self, ctx: PruneContext) -> Selection:
        """See :meth:`tokenprune.pruners.base.Pruner.select`."""
        previous = ctx.grid.earlier(torch.ones_like(ctx.groups))
        dissimilarity = 1 - cosine_to(ctx.hidden, previous)
        ctx.check_finite(dissimilarity, type(self).__name__)
        scores = dissimilarity.masked_fill(previous < 0, _NEW)
        best_of_images = best_of_each(scores, ctx.groups, ctx.quotas.shape[1])
        total = ctx.quotas.sum(1)
        if ctx.open_ended:
            new = (best_of_images | (previous < 0)) & ctx.visual_mask
            published = [floor_share(sum(sizes), 1 - self.rate) for sizes in ctx.per_image.host_sizes]
            total = torch.maximum(new.sum(1), torch.tensor(published, device=ctx.quotas.device))
        keep = best_overall(scores, best_of_images, ctx.visual_mask, total)
        return Selection(keep=keep, scores=dissimilarity.masked_fill(previous < 0, torch.nan))

    def flops(self, shape: Shape, visual: int, tokens: int) -> int:
        """One cosine per token."""
        return 2 * visual * shape.width
