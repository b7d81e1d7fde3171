"""VidCom2's selection: frames that differ from the video keep more tokens; the most unusual tokens are kept."""

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch.nn.functional import normalize

from tokenprune.core.tunable import Tunable
from tokenprune.flops.decoder import Shape
from tokenprune.ops.frames import best_overall, mean_of_frames
from tokenprune.ops.gaussian import WIDTHS, kernel_sum, steady_channels
from tokenprune.ops.topk import rank_within
from tokenprune.pruners.base import Pruner, Selection
from tokenprune.signals.context import PruneContext

_ALWAYS = 1e9  # more than any frame quota
_STEPS = 1024  # frame quotas are rounded to 1/1024 of a token


class VidCom2(Pruner):
    """Give frames that differ from the video a larger share; keep the tokens that differ from frame and video.

    Only the ``channels`` share of the channels with the least variance over the video is compared. Similarity is a sum
    of Gaussian kernels (:func:`tokenprune.ops.gaussian.kernel_sum`) between a token's normalised state and the mean
    state of the video, or of the frame. A frame keeps the share ``quota / tokens * (1 + p - mean(p))`` of its tokens.
    Here p is the softmax over the frames of their mean dissimilarity to the video, divided by ``temperature``. No frame
    keeps more tokens than it has.

    The numbers per frame are rounded so that the budget is met exactly: rounded down, and the remainder goes to the
    largest fractions, with at least one token per frame as long as there are enough. Ties (numbers equal up to 1/1024
    of a token) keep the earlier position. Several images are frames of one video. Tokens without a place on the grid
    (row separators) are kept.

    Differs from the published code: that code rounds the number of each frame to the nearest integer, so that the total
    is only near the budget (in half of our seeded videos, off by up to 4 tokens). Where its numbers add up to the
    budget, the sets are the same.

    Source: "Video Compression Commander: Plug-and-Play Inference Acceleration for Video Large Language Models",
    arXiv 2505.14454.

    Attributes:
        temperature: Temperature of the softmax over frames.
        channels: Share of the channels that is compared.
    """

    shares_quota_itself: ClassVar[bool] = True

    temperature: Annotated[float, Tunable(0.01, 0.1)] = Field(default=0.01, gt=0)
    channels: Annotated[float, Tunable(0.5, 1.0)] = Field(default=0.5, gt=0, le=1)

    @property
    def needs(self) -> frozenset[str]:
        """Hidden states, and the token grid."""
        return frozenset({"hidden", "grid"})

    def select(self, ctx: PruneContext) -> Selection:
        """See :meth:`tokenprune.pruners.base.Pruner.select`."""
        frames = ctx.grid.frames
        on_grid = frames >= 0
        states = steady_channels(ctx.hidden.float(), on_grid, max(1, int(ctx.hidden.shape[-1] * self.channels)))
        states = normalize(states, dim=-1)
        frame_index = frames.clamp(min=0)
        frame_means, sizes = mean_of_frames(states, frames)
        video_mean = (states * on_grid[:, :, None]).sum(1, keepdim=True) / on_grid.sum(1).clamp(min=1)[:, None, None]
        to_video = kernel_sum(states, video_mean)
        to_frame = kernel_sum(states, frame_means.gather(1, frame_index[:, :, None].expand_as(states)))
        ctx.check_finite(to_video + to_frame, type(self).__name__)

        dissimilarity = -mean_of_frames(to_video, frames)[0]
        weights = (dissimilarity / self.temperature).masked_fill(sizes == 0, float("-inf")).softmax(1)
        total = ctx.quotas.sum(1)
        rate = (total - (ctx.visual_mask & ~on_grid).sum(1)).clamp(min=0) / on_grid.sum(1).clamp(min=1)
        frame_count = (sizes > 0).sum(1).clamp(min=1)
        frame_quotas = rate[:, None] * (1 + weights - 1 / frame_count[:, None]) * sizes
        # most frame quotas differ only in the last digits of the softmax
        frame_quotas = torch.round(frame_quotas * _STEPS) / _STEPS
        # a token's claim is its frame's quota less its rank in the frame; the largest claims fill the budget exactly
        rank = rank_within(-(to_video + to_frame), frames)
        claims = torch.minimum(frame_quotas, sizes).gather(1, frame_index) - rank
        keep = best_overall(claims.masked_fill(~on_grid, _ALWAYS), (rank == 0) | ~on_grid, ctx.visual_mask, total)
        return Selection(keep=keep, scores=(-to_video - to_frame).masked_fill(~on_grid, torch.nan))

    def flops(self, shape: Shape, visual: int, tokens: int) -> int:
        """The variances, the two means, and the distances to them with five kernels each."""
        return visual * (4 * shape.width + 2 * (3 * int(shape.width * self.channels) + 4 * len(WIDTHS)))
