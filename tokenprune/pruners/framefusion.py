"""FrameFusion's merging: similar tokens at the same place of successive frames become their mean."""

from typing import Annotated, ClassVar

import torch
from pydantic import Field

from tokenprune.core.tunable import Tunable
from tokenprune.flops.decoder import Shape
from tokenprune.ops.frames import best_of_each, best_overall, chains, cosine_to
from tokenprune.pruners.base import Pruner, Selection
from tokenprune.signals.context import PruneContext


class FrameFusion(Pruner):
    """Merge similar tokens at the same place of the grid along successive frames.

    Each token is compared with its predecessor: the token at the same place of the grid in the nearest earlier frame
    that still has one. A token merges if its cosine similarity to the predecessor is at least ``threshold``. A run of
    merging tokens joins the token that precedes the run. The state of that token becomes the mean of all of them, and
    it keeps its position.

    Before the last stage, and with the budget ``adaptive``, the threshold decides how many tokens merge; if fewer
    would be left than after the last stage, only the most similar tokens merge. Under a budget that states a number,
    exactly that number is left: the most similar tokens merge whatever the threshold; if there are still too many
    tokens without a predecessor, the latest of them are dropped. Ties keep the earlier position. Several images are
    frames of one video; each keeps at least the token that is least similar to its predecessor. Frames of different
    sizes are not compared. Tokens that are not on the grid are kept.

    Differs from the published code: that code merges before the attention of layer 0 and then after each attention,
    until less than a tenth of the tokens is similar, and only then prunes. Here the layers of the method state how
    often it merges, each time before a layer. A mean that merges again has the weight of one token, as in that
    code. Its parameter is a cost, averaged over 28 layers whatever the model's depth: what the first layers saw
    more than the average, the later ones see less, so that a cost leaves a smaller share of the tokens than its
    number. A budget here is the share that is left. Where a merge alone reaches the cost, that code rounds the
    number of merged tokens down, so that one token more is left than the share rounded down. On Qwen2-VL it prunes
    by the attention of the last four prompt tokens, which is the scorer ``fastv`` with ``queries: 4``; on all other
    models by the last one.

    Source: "FrameFusion: Combining Similarity and Importance for Video Token Reduction on Large Vision Language
    Models", arXiv 2501.01986.

    Attributes:
        threshold: Lowest cosine similarity of tokens that merge.
    """

    adaptive: ClassVar[bool] = True
    shares_quota_itself: ClassVar[bool] = True

    threshold: Annotated[float, Tunable(0.4, 0.6, 0.8)] = Field(default=0.6, ge=-1, le=1)

    @property
    def needs(self) -> frozenset[str]:
        """Hidden states, and the token grid."""
        return frozenset({"hidden", "grid"})

    def select(self, ctx: PruneContext) -> Selection:
        """See :meth:`tokenprune.pruners.base.Pruner.select`."""
        order, continues = chains(ctx.grid.frames, ctx.grid.frame_sizes, ctx.grid.coordinates)
        predecessor = torch.full_like(order, -1).scatter(1, order, order.roll(1, 1).masked_fill(~continues, -1))
        ctx.grid.check_compared(predecessor >= 0)
        similarity = cosine_to(ctx.hidden, predecessor)
        ctx.check_finite(similarity + ctx.hidden.float().square().sum(-1), type(self).__name__)
        similarity = similarity.masked_fill(predecessor < 0, -2.0)
        best_of_images = best_of_each(-similarity, ctx.groups, ctx.quotas.shape[1])
        count = ctx.quotas.sum(1)
        if ctx.open_ended:
            dissimilar = (similarity < self.threshold) | best_of_images
            count = torch.maximum(count, (ctx.visual_mask & dissimilar).sum(1))
        keep = best_overall(-similarity, best_of_images, ctx.visual_mask, count)

        # in the order of the chains, a dropped token joins the last kept token before it, if its chain has one
        rank = torch.arange(order.shape[1], device=order.device)
        starts = ~continues | keep.gather(1, order)
        head = order.gather(1, torch.where(starts, rank, 0).cummax(1).values)
        head = torch.zeros_like(order).scatter(1, order, head)
        joins = ctx.visual_mask & keep.gather(1, head)
        states = ctx.hidden.float()
        index = head[:, :, None].expand_as(states)
        sums = torch.zeros_like(states).scatter_add(1, index, states * joins[:, :, None])
        members = torch.zeros_like(similarity).scatter_add(1, head, joins.float())
        return Selection(
            keep,
            sums / members.clamp(min=1)[:, :, None],
            scores=(-similarity).masked_fill(predecessor < 0, torch.nan),
            merged=head.masked_fill(keep | ~joins, -1),
        )

    def flops(self, shape: Shape, visual: int, tokens: int) -> int:
        """One cosine per token, and the means."""
        return 3 * visual * shape.width
