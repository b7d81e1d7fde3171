"""DyCoke's first half: in every group of four frames, what is like an earlier frame of the group goes."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from tokenprune.context import PruneContext
from tokenprune.flops import Shape
from tokenprune.ops.frames import best_of_each, best_overall, cosine_to, mean_of_frames, rank_within
from tokenprune.pruners.base import Pruner, Selection

GROUP = 4
_LAGS = (0, 1, 2, 1)  # the frame of its group that each frame is compared with: none, first, first, third
_UNCOMPARED = 4.0  # above every dissimilarity, which is 2 at most, and the 1 that is added to it


class TemporalMerge(Pruner):
    """Keep the first of every four frames; of the others the tokens least like the same cell of an earlier one.

    The second and the third frame of a group are compared with the first, the fourth with the third (cosine, before
    anything is dropped). With the budget ``adaptive`` each of these three loses the published share ``rate`` of its
    tokens: ``floor(tokens (1 - rate))`` stay. Under a budget that states a number the first frames are kept and the
    others have equal numbers of their least similar tokens, the remainder one each to the earlier frames; where not
    even the first frames fit, those tokens of them stay that are least like the first frame of the group before.
    Ties keep the earlier position. Several images are frames of one video, each keeps at least one token. What has no
    cell to be compared with is kept like a first frame.

    The method is named merging, but the published code drops the similar tokens and changes no other; so here. Differs
    from that code: it leaves the third frame of the last group whole (its loop ends a group early) and loses the last
    one of an odd number of frames; here both are treated like all others. DyCoke's second half, which chooses anew at
    every decoding step which keys are seen, is not here: it shortens no prefill.

    Source: "DyCoke: Dynamic Compression of Tokens for Fast Video Large Language Models", arXiv 2411.15024.

    Attributes:
        rate: Share of the tokens that a compared frame loses, for the budget ``adaptive``.
    """

    adaptive: ClassVar[bool] = True
    across_images: ClassVar[bool] = True

    rate: float = Field(default=0.7, ge=0, lt=1)

    @property
    def needs(self) -> frozenset[str]:
        """Hidden states."""
        return frozenset({"hidden"})

    def select(self, ctx: PruneContext, quotas: Tensor) -> Selection:
        """See :meth:`tokenprune.pruners.base.Pruner.select`."""
        frames = ctx.frames
        lags = torch.tensor(_LAGS, device=frames.device)[frames.clamp(min=0) % GROUP]
        before = ctx.earlier(lags)
        unlike = 1 - cosine_to(ctx.hidden, before)
        ctx.check_finite(unlike + ctx.hidden.float().square().sum(-1), type(self).__name__)
        compared = before >= 0
        among = torch.where(compared, frames, -1)
        rank = rank_within(unlike, among)
        group_before = ctx.earlier(torch.full_like(frames, GROUP), required=False)
        novelty = 1 + (1 - cosine_to(ctx.hidden, group_before))
        whole = novelty.masked_fill(group_before < 0, _UNCOMPARED)
        scores = torch.where(compared, -rank.float(), whole)
        first = best_of_each(scores, ctx.groups, quotas.shape[1])
        if ctx.open_ended:
            sizes = mean_of_frames(unlike, among)[1].gather(1, frames.clamp(min=0))
            stay = rank < torch.floor(sizes * (1 - self.rate) + 1e-6)
            return Selection(keep=(first | ~compared | stay) & ctx.visual_mask)
        return Selection(keep=best_overall(scores, first, ctx.visual_mask, quotas.sum(1)))

    def flops(self, shape: Shape, visual: int, tokens: int) -> int:
        """Two cosines per token."""
        return 4 * visual * shape.width
