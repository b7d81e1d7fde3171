"""EVS's selection: what does not change from frame to frame is dropped."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from pydantic import Field

from tokenprune.context import PruneContext
from tokenprune.flops import Shape
from tokenprune.ops.frames import best_of_each, best_overall, cosine_to
from tokenprune.pruners.base import Pruner, Selection

_NEW = 3.0  # above every dissimilarity, which is 2 at most


class Evs(Pruner):
    """Keep the tokens least like the same cell of the frame before (1 - cosine); the first frame is always kept.

    With the budget ``adaptive`` the count is the published one: of T tokens ``floor(T (1 - rate))``, but never fewer
    than the first frame has. Under a budget that states a number, that number is kept, even if the first frame does
    not fit. Ties keep the earlier position. Several images are frames of one video, and so are several videos one
    after the other; each image or video keeps at least its best token. What has no cell in the frame before (the first
    frame, row separators, a frame of another size) counts as new and is kept like the first frame.

    It is a pruner and not a scorer because a budget does not know how large a frame is. The features are compared, as
    in the published code (vLLM); reviews of the paper tell of pixels. Differs from that code: kept tokens have their
    original positions; a product that rounding leaves just below an integer counts as that integer; a sample without
    a second frame is an error, where vLLM leaves images alone.

    Source: "Efficient Video Sampling: Pruning Temporally Redundant Tokens for Faster VLM Inference",
    arXiv 2510.14624.

    Attributes:
        rate: Share of the tokens to drop, for the budget ``adaptive``.
    """

    adaptive: ClassVar[bool] = True
    across_images: ClassVar[bool] = True

    rate: float = Field(default=0.75, ge=0, lt=1)

    def select(self, ctx: PruneContext) -> Selection:
        """See :meth:`tokenprune.pruners.base.Pruner.select`."""
        before = ctx.earlier(torch.ones_like(ctx.positions))
        scores = (1 - cosine_to(ctx.hidden, before)).masked_fill(before < 0, _NEW)
        ctx.check_finite(scores + ctx.hidden.abs().amax(-1), type(self).__name__)
        first = best_of_each(scores, ctx.groups, ctx.quotas.shape[1])
        total = ctx.quotas.sum(1)
        if ctx.open_ended:
            new = (first | (before < 0)) & ctx.visual_mask
            kept = [math.floor(sum(sizes) * (1 - self.rate) + 1e-9) for sizes in ctx.per_image.host_sizes]
            total = torch.maximum(new.sum(1), torch.tensor(kept, device=ctx.quotas.device))
        return Selection(keep=best_overall(scores, first, ctx.visual_mask, total))

    def flops(self, shape: Shape, visual: int, tokens: int) -> int:
        """One cosine per token."""
        return 2 * visual * shape.width
