"""VidCom2's selection: more tokens for frames unlike the others, in each the tokens unlike their surroundings."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch.nn.functional import normalize

from tokenprune.context import PruneContext
from tokenprune.flops import Shape
from tokenprune.ops.frames import best_overall, mean_of_frames, rank_within
from tokenprune.ops.gaussian import WIDTHS, kernel_sum, steady_channels
from tokenprune.pruners.base import Pruner, Selection

_ALWAYS = 1e9  # above every share and rank
_STEPS = 1024


class VidCom2(Pruner):
    """Frames that are unlike the video get a larger share; each keeps its tokens that are unlike frame and video.

    Only the half of the channels with the least variance over the video counts. Likeness is a sum of Gaussian kernels
    (:func:`tokenprune.ops.gaussian.kernel_sum`) of the normalised states around their mean over the video, or over the
    frame. A frame's share is ``quota / tokens * (1 + p - mean(p))``, where p is the softmax over the frames of its mean
    unlikeness to the video, divided by ``temperature``; no frame gets more tokens than it has.

    Shares are made whole so that the budget is met exactly: rounded down, the remainder to the largest fractions, at
    least one token each as long as there are enough. Ties (of shares: equal up to 1/1024 of a token) keep the earlier
    position. Several images are frames of one
    video. What has no place on the grid (row separators) is kept. Differs from the published code, which rounds each
    frame's count to the nearest, so that the total is near the budget.

    Source: "Video Compression Commander: Plug-and-Play Inference Acceleration for Video Large Language Models",
    arXiv 2505.14454.

    Attributes:
        temperature: Of the softmax over frames.
        channels: Share of the channels that counts.
    """

    across_images: ClassVar[bool] = True

    temperature: float = Field(default=0.01, gt=0)
    channels: float = Field(default=0.5, gt=0, le=1)

    def select(self, ctx: PruneContext) -> Selection:
        """See :meth:`tokenprune.pruners.base.Pruner.select`."""
        frames = ctx.frames
        placed = frames >= 0
        states = steady_channels(ctx.hidden.float(), placed, max(1, int(ctx.hidden.shape[-1] * self.channels)))
        states = normalize(states, dim=-1)
        own = frames.clamp(min=0)
        centres, sizes = mean_of_frames(states, frames)
        middle = (states * placed[:, :, None]).sum(1, keepdim=True) / placed.sum(1).clamp(min=1)[:, None, None]
        to_video = kernel_sum(states, middle)
        to_frame = kernel_sum(states, centres.gather(1, own[:, :, None].expand_as(states)))
        ctx.check_finite(to_video + to_frame, type(self).__name__)

        unlike = -mean_of_frames(to_video, frames)[0]
        chance = (unlike / self.temperature).masked_fill(sizes == 0, float("-inf")).softmax(1)
        total = ctx.quotas.sum(1)
        rate = (total - (ctx.visual_mask & ~placed).sum(1)).clamp(min=0) / placed.sum(1).clamp(min=1)
        count = (sizes > 0).sum(1).clamp(min=1)
        shares = rate[:, None] * (1 + chance - 1 / count[:, None]) * sizes
        shares = torch.round(shares * _STEPS) / _STEPS  # most frames differ in nothing but the softmax's last digits
        # a frame's r-th best token is due as long as r is below the share: the most due ones fill the budget exactly
        rank = rank_within(-(to_video + to_frame), frames)
        due = torch.minimum(shares, sizes).gather(1, own) - rank
        return Selection(
            keep=best_overall(due.masked_fill(~placed, _ALWAYS), (rank == 0) | ~placed, ctx.visual_mask, total)
        )

    def flops(self, shape: Shape, visual: int, tokens: int) -> int:
        """Variance, two centres and the distances to them, five kernels each."""
        return visual * (4 * shape.width + 2 * (3 * int(shape.width * self.channels) + 4 * len(WIDTHS)))
