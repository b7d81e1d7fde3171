"""DyCoke's token temporal merging: drop the tokens of a group of four frames that repeat an earlier frame."""

from typing import ClassVar

import torch
from pydantic import Field

from tokenprune.flops.decoder import Shape
from tokenprune.ops.frames import best_of_each, best_overall, cosine_to, mean_of_frames
from tokenprune.ops.topk import rank_within
from tokenprune.pruners.base import Pruner, Selection
from tokenprune.signals.context import PruneContext

GROUP = 4
_LAGS = (0, 1, 2, 1)  # each frame of a group is compared with the frame this many earlier; the first with none
_UNCOMPARED = 4.0  # more than any novelty, which is at most 3


class DyCoke(Pruner):
    """Keep the first of every four frames, and of the others the tokens least similar to an earlier frame.

    Each token is compared with the token at the same place of the grid of an earlier frame: tokens of the second and
    third frame of a group with the first frame, tokens of the fourth with the third (cosine, before anything is
    dropped). With the budget ``adaptive``, each of these three frames loses the published share ``rate`` of its tokens:
    ``floor(tokens (1 - rate))`` are kept. Under a budget that states a number, the first frames are kept, and the other
    frames keep equal numbers of their least similar tokens; the remainder goes one each to the earlier frames. If the
    budget is too small for the first frames, their tokens that are least similar to the first frame of the previous
    group are kept. Ties keep the earlier position. Several images are frames of one video; each keeps at least one
    token. Tokens that cannot be compared (row separators, frames of another size) are kept like those of a first frame.

    The paper calls this merging, but the published code drops the similar tokens and changes no others. So does this
    pruner. Differs from the published code: that code keeps the third frame of the last group whole (its loop ends one
    group early) and loses the last frame of an odd number of frames; here both are treated like all others. It emits
    the kept tokens of a frame in the order of their similarity, the least similar first, and gives all tokens new
    positions; here they stay in their order and keep their positions. A count that rounding leaves just below a whole
    number is rounded down there. DyCoke's second stage, which selects visible keys at every decoding step, is left
    out: it does not shorten the prefill.

    Source: "DyCoke: Dynamic Compression of Tokens for Fast Video Large Language Models", arXiv 2411.15024.

    Attributes:
        rate: Share of the tokens that a compared frame loses, for the budget ``adaptive``.
    """

    adaptive: ClassVar[bool] = True
    shares_quota_itself: ClassVar[bool] = True

    rate: float = Field(default=0.7, ge=0, lt=1)

    @property
    def needs(self) -> frozenset[str]:
        """Hidden states, and the token grid."""
        return frozenset({"hidden", "grid"})

    def select(self, ctx: PruneContext) -> Selection:
        """See :meth:`tokenprune.pruners.base.Pruner.select`."""
        frames = ctx.grid.frames
        lags = torch.tensor(_LAGS, device=frames.device)[frames.clamp(min=0) % GROUP]
        reference = ctx.grid.earlier(lags)
        previous_group = ctx.grid.earlier(torch.full_like(frames, GROUP), required=False)
        compared = reference >= 0
        dissimilarity = 1 - cosine_to(ctx.hidden, torch.where(compared, reference, previous_group))
        ctx.check_finite(dissimilarity, type(self).__name__)
        compared_frames = torch.where(compared, frames, -1)
        rank = rank_within(dissimilarity, compared_frames)
        novelty = (1 + dissimilarity).masked_fill(previous_group < 0, _UNCOMPARED)
        scores = torch.where(compared, -rank.float(), novelty)
        best_of_images = best_of_each(scores, ctx.groups, ctx.quotas.shape[1])
        if ctx.open_ended:
            sizes = mean_of_frames(dissimilarity, compared_frames)[1].gather(1, frames.clamp(min=0))
            within_rate = rank < torch.floor(sizes * (1 - self.rate) + 1e-6)
            keep = (best_of_images | ~compared | within_rate) & ctx.visual_mask
        else:
            keep = best_overall(scores, best_of_images, ctx.visual_mask, ctx.quotas.sum(1))
        return Selection(keep=keep, scores=dissimilarity.masked_fill(~compared & (previous_group < 0), torch.nan))

    def flops(self, shape: Shape, visual: int, tokens: int) -> int:
        """Two cosines per token."""
        return 4 * visual * shape.width
