"""FlashVID's selection before the language model: salient and diverse tokens of every frame; the others are merged."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Annotated, ClassVar

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from tokenprune.core.tunable import Tunable, TunableLayer
from tokenprune.flops.decoder import Shape
from tokenprune.ops.cosine import self_similarity
from tokenprune.ops.dpc_knn import dpc_knn
from tokenprune.ops.greedy import max_min
from tokenprune.ops.per_image import PerImage
from tokenprune.ops.segments import segment_frames, sum_by_segment
from tokenprune.ops.temporal_merge import Trees, temporal_merge
from tokenprune.ops.tiles import divide
from tokenprune.ops.topk import rank_within
from tokenprune.pruners.base import Pruner, Selection
from tokenprune.signals.context import PruneContext
from tokenprune.signals.signal_reader import TowerLayerNumber

_NEIGHBOURS = 7


class FlashVID(Pruner):
    """Keep salient and diverse tokens of every frame; merge the others along the frames, then within each frame.

    The frames are cut into segments by the cosines of their mean states
    (:func:`tokenprune.ops.segments.segment_frames`). Of b tokens to keep of a frame, ``ceil(b * diverse)`` are diverse:
    greedy max-min by the distance ``(1 - cosine) * attention``, with the attention of the token that is to be taken
    (the class token's; in a tower without one the mean over all tokens; mean over heads). With ``relevance``, that
    attention is also multiplied by the dot product of the token's state with the mean over the frames of its segment.
    The other tokens of a segment merge along the frames (:func:`tokenprune.ops.temporal_merge.temporal_merge`). What is
    left of them in a frame is clustered (:func:`tokenprune.ops.dpc_knn.dpc_knn`, at most seven neighbours), and each
    cluster becomes its mean, at the place of its centre. The numbers of clusters of a segment's frames are in
    proportion to the tokens that merging left in each. Ties keep the earlier position.

    Where the budget lets the pruner decide, b is ``ceil(share * tokens)`` of a frame, and numbers of clusters are
    rounded up, as in the published code. Under a budget that states a number, exactly that number is kept: it is
    divided between the frames in proportion to their tokens, and the clusters of a segment between its frames, each
    time rounded down with the remainder to the largest fractions (ties: the earlier frame). Several images are frames
    of one video. Tokens without a place on the grid (row separators) are kept, as long as each frame of their image
    still gets a token.

    Differs from the published code: in a segment of one frame, that code clusters the diverse tokens once more
    together with the others; here they are left out, as in longer segments. Ties of densities are left to random noise
    there, which decides about the place of a cluster in a frame with one or two of them. With
    ``relevance``, that code can take a token twice, and then keeps fewer. It computes the products and quotients of
    counts in floating point, so that an integer may be rounded up. Its last stage, in the language model, is
    ``topk`` with the scorer ``fastv``: combine them with ``stages``.

    Source: "FlashVID: Efficient Video Large Language Models via Training-free Tree-based Spatiotemporal Token Merging",
    arXiv 2602.08024.

    Attributes:
        share: Share of a frame's tokens that is kept where the pruner decides.
        diverse: Share of a frame's kept tokens that is diverse; the others are clusters.
        relevance: Whether the attention is multiplied by the relevance to the segment.
        threshold: Cosine above which tokens merge along the frames.
        segment_threshold: Cosine below which frames are in different segments.
        min_segments: Fewest segments of a video.
        layer: Layer of the tower whose attention is read; negative from the end.
    """

    adaptive: ClassVar[bool] = True
    shares_quota_itself: ClassVar[bool] = True

    share: float = Field(default=0.3125, gt=0, le=1)
    diverse: Annotated[float, Tunable(0.3, 0.7, 1.0)] = Field(default=0.7, gt=0, le=1)
    relevance: Annotated[bool, Tunable(False, True)] = False
    threshold: float = Field(default=0.8, ge=-1, le=1)
    segment_threshold: float = Field(default=0.9, ge=-1, le=1)
    min_segments: Annotated[PositiveInt, Tunable(1, 4, 8)] = 8
    layer: Annotated[TowerLayerNumber, TunableLayer(2 / 3, 1.0)] = -1

    @property
    def needs(self) -> frozenset[str]:
        """Hidden states, and the token grid."""
        return frozenset({"hidden", "grid"})

    def select(self, ctx: PruneContext) -> Selection:
        """See :meth:`tokenprune.pruners.base.Pruner.select`."""
        attention = ctx.vision(self.layer).attention
        ctx.check_finite(ctx.hidden.float().square().sum(-1) + attention, type(self).__name__)
        layout = ctx.by_frame(partial(self._frame_quotas, open_ended=ctx.open_ended))
        shape = (len(ctx.groups), layout.most, layout.max_size)
        states, valid = layout.split(ctx.hidden).float(), layout.valid
        segments, means = self._segments(states, valid, shape)
        weights = layout.split(attention)
        if self.relevance:
            weights = weights * (states @ means.flatten(0, 1)[:, :, None])[:, :, 0]
        counts, most = layout.counts(self._diverse)
        chosen = max_min(1 - self_similarity(states), valid, counts, most, weights)

        quotas = layout.quotas.view(shape[:2])
        whole = valid.view(shape)
        trees = temporal_merge(
            states.view(*shape, -1), whole, whole & ~chosen.view(shape), segments, quotas, self.threshold
        )
        left = whole & ~chosen.view(shape) & ~trees.merged
        clusters = _clusters(left.sum(-1), quotas - counts.view(shape[:2]), segments, ctx.open_ended)
        centres, clustered, centre = dpc_knn(
            trees.states.flatten(0, 1), left.flatten(0, 1), clusters.flatten(), _NEIGHBOURS
        )
        keep = layout.join(chosen | centres) | self._separators(ctx)
        merged = _targets(trees, centre.view(shape), clusters, layout).masked_fill(keep, -1)
        hidden = torch.where(layout.join(centres)[:, :, None], layout.join(clustered), ctx.hidden.float())
        return Selection(keep, hidden, attention.masked_fill(ctx.grid.frames < 0, torch.nan), merged)

    def _frame_quotas(self, quota: int, frames: Sequence[int], separators: int, *, open_ended: bool) -> Sequence[int]:
        """Tokens to keep of each frame of an image or video.

        Args:
            quota: Tokens to keep of the image.
            frames: Tokens of each of its frames.
            separators: Its tokens without a frame.
            open_ended: Whether the quota is a lower bound.
        """
        fixed = divide(quota - kept_separators(quota, len(frames), separators), frames, frames)
        if not open_ended:
            return fixed
        return [max(least, math.ceil(count * self.share - 1e-9)) for least, count in zip(fixed, frames, strict=True)]

    def _diverse(self, quota: int) -> int:
        return math.ceil(quota * self.diverse - 1e-9)

    def _segments(self, states: Tensor, valid: Tensor, shape: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
        """Segment of each frame, long ``[batch, frames]``; mean over its frames' means, ``[batch, frames, dim]``."""
        sizes = valid.sum(1)
        means = states.masked_fill(~valid[:, :, None], 0.0).sum(1) / sizes.clamp(min=1)[:, None]
        means, exists = means.view(*shape[:2], -1), (sizes > 0).view(shape[:2])
        segments = segment_frames(means, exists, self.segment_threshold, self.min_segments)
        member = (segments[:, :, None] == segments[:, None, :]) & exists[:, None, :]
        return segments, member.float() @ means / member.sum(-1, keepdim=True).clamp(min=1)

    def _separators(self, ctx: PruneContext) -> Tensor:
        """Tokens without a frame that are kept, bool ``[batch, n_visual]``."""
        separators = ctx.visual_mask & (ctx.grid.frames < 0)
        if ctx.open_ended:
            return separators
        number = torch.arange(ctx.per_image.most, device=separators.device)
        own = (ctx.groups[:, :, None] == number) & separators[:, :, None]
        frames = torch.where(ctx.groups[:, :, None] == number, ctx.grid.coordinates[:, :, :1] + 1, 0).amax(1)
        kept = torch.minimum((ctx.quotas - frames).clamp(min=0), own.sum(1))
        return (own & (own.cumsum(1) <= kept[:, None, :])).any(-1)

    def flops(self, shape: Shape, visual: int, tokens: int) -> int:
        """Cosines within frames and to the frame before, and the distances of the clustering, as for one large frame.

        An upper bound: how many frames the tokens are divided into is not known here.
        """
        return 6 * visual**2 * shape.width


def kept_separators(quota: int, frames: int, separators: int) -> int:
    """Tokens without a frame that an image keeps: all, as long as each of its frames still gets a token."""
    return min(max(quota - frames, 0), separators)


def _clusters(left: Tensor, wanted: Tensor, segments: Tensor, open_ended: bool) -> Tensor:
    """Clusters of each frame, long ``[batch, frames]``.

    Args:
        left: Tokens that merging left in each frame.
        wanted: Clusters for each frame; those of a segment are divided between its frames by ``left``.
        segments: Segment of each frame.
        open_ended: Whether fractions are rounded up.
    """
    total = sum_by_segment(left, segments).clamp(min=1)
    product = left * sum_by_segment(wanted, segments)
    whole, rest = product // total, product % total
    if open_ended:
        return whole + (rest > 0).long()
    missing = sum_by_segment(wanted - whole, segments)
    return whole + (rank_within(rest, segments) < missing).long()


def _targets(trees: Trees, centre: Tensor, clusters: Tensor, layout: PerImage) -> Tensor:
    """The centre that each token ended in, as an index on the visual axis, long ``[batch, n_visual]``; -1 for none."""
    batch, frames, n = centre.shape
    first = n * torch.arange(frames, device=centre.device)[:, None]
    ended = torch.where(clusters[:, :, None] > 0, centre + first, -1).flatten(1)
    target = ended.gather(1, trees.root.flatten(1))
    axis = layout.index.view(batch, frames * n).gather(1, target.clamp(min=0)).masked_fill(target < 0, -1)
    joined = layout.join(axis.view(batch * frames, n))
    return joined.masked_fill(layout.groups < 0, -1)
