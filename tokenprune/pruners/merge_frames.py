"""FrameFusion's merging: successive tokens of one cell that are alike become their mean."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from tokenprune.context import PruneContext
from tokenprune.flops import Shape
from tokenprune.ops.frames import best_of_each, best_overall, chains, cosine_to
from tokenprune.pruners.base import Pruner, Selection


class MergeFrames(Pruner):
    """Merge tokens into the last different token of the same cell, along chains of frames.

    A token merges when its cosine to the token before it in its cell is at least ``threshold``: the next earlier frame
    of which that cell is left. A run of merging tokens joins the token that the run follows; its state becomes the
    mean of all, and it stays at its position. Before the last stage, and with the budget ``adaptive``, the threshold
    decides how many merge, but never are fewer left than after the last stage: then the most alike merge. Where a
    count is stated, exactly that many are left: the most alike merge whatever the threshold says, and should tokens
    with none before them be too many, the latest of them are dropped. Ties keep the earlier position. Several images
    are frames of one video, each keeps at least the token least like the one before it; frames of different sizes are
    not compared. Tokens without a place on the grid stay.

    Differs from the published code: that merges before the attention of layer 0 and then after each attention, until
    less than a tenth is alike, and only then prunes. Here the layers of the method say how often it merges, each time
    before a layer; a mean that merges again weighs as one token, as there.

    Source: "FrameFusion: Combining Similarity and Importance for Video Token Reduction on Large Vision Language
    Models", arXiv 2501.01986.

    Attributes:
        threshold: The least cosine of tokens that merge.
    """

    adaptive: ClassVar[bool] = True
    across_images: ClassVar[bool] = True

    threshold: float = Field(default=0.6, ge=-1, le=1)

    @property
    def needs(self) -> frozenset[str]:
        """Hidden states."""
        return frozenset({"hidden"})

    def select(self, ctx: PruneContext, quotas: Tensor) -> Selection:
        """See :meth:`tokenprune.pruners.base.Pruner.select`."""
        order, follows = chains(ctx.frames, ctx.frame_sizes, ctx.grid)
        before = torch.full_like(order, -1).scatter(1, order, order.roll(1, 1).masked_fill(~follows, -1))
        ctx.check_frames(before >= 0)
        alike = cosine_to(ctx.hidden, before)
        ctx.check_finite(alike + ctx.hidden.float().square().sum(-1), type(self).__name__)
        alike = alike.masked_fill(before < 0, -2.0)
        own = best_of_each(-alike, ctx.groups, quotas.shape[1])
        left = quotas.sum(1)
        if ctx.open_ended:
            left = torch.maximum(left, (ctx.visual_mask & ((alike < self.threshold) | own)).sum(1))
        keep = best_overall(-alike, own, ctx.visual_mask, left)

        # in the order of the cells, what is dropped joins the last kept token before it, unless its cell has none
        rank = torch.arange(order.shape[1], device=order.device)
        starts = ~follows | keep.gather(1, order)
        head = order.gather(1, torch.where(starts, rank, 0).cummax(1).values)
        head = torch.zeros_like(order).scatter(1, order, head)
        joins = ctx.visual_mask & keep.gather(1, head)
        states = ctx.hidden.float()
        index = head[:, :, None].expand_as(states)
        sums = torch.zeros_like(states).scatter_add(1, index, states * joins[:, :, None])
        count = torch.zeros_like(alike).scatter_add(1, head, joins.float())
        return Selection(keep=keep, hidden=sums / count.clamp(min=1)[:, :, None])

    def flops(self, shape: Shape, visual: int, tokens: int) -> int:
        """One cosine per token, and the means."""
        return 3 * visual * shape.width
