"""HoloV's selection: every part of the image keeps a share."""

from __future__ import annotations

import torch
from pydantic import Field, PositiveInt

from tokenprune.context import PruneContext
from tokenprune.flops import Shape
from tokenprune.ops.cosine import self_similarity
from tokenprune.ops.crops import Crops, allocate, similarity_variance
from tokenprune.pruners.base import Pruner, Selection
from tokenprune.reader import TowerLayerNumber

_SMALL = 1e-6  # the published code's guard of the division


class HoloV(Pruner):
    """Cut an image into crops, share the quota between them, keep the tokens with most attention in each.

    Crops are runs of successive tokens. A token's score is its attention in the vision tower plus ``beta`` times the
    variance of its cosines to the others of the crop, which is first scaled to the crop's mean attention; a crop's
    weight is the mean score. Quotas are in proportion to the weights: rounded down, the remainder one each to the
    largest weights (ties: the earlier crop); what a crop cannot hold goes to the others by the same rule. Within a
    crop ties keep the earlier position.

    Scaled like that, the variances of a crop have the mean of its attention: the weight is ``attention * (1 + beta *
    v / (v + 1e-6))`` with the means of attention and variance. Unless ``v`` is tiny that is the mean attention times
    a constant; so it is in the published code, too.

    Differs from the published code: what a crop cannot hold is not replaced by zero vectors; a crop of a single token
    has its attention as weight, in the same unit as the others; several images are cut one by one. Only the
    selection is here: the refetching of dropped context that the paper adds is not.

    Source: "Don't Just Chase 'Highlighted Tokens' in MLLMs: Revisiting Visual Holistic Context Retention",
    arXiv 2510.02912.

    Attributes:
        crops: Crops per image; an image with fewer tokens has one per token.
        beta: Weight of the variance; attention has 1.
        power: Sharpness: weights are taken to this power.
        layer: Layer of the tower; negative from the end.
    """

    crops: PositiveInt = 16
    beta: float = Field(default=0.09, ge=0)
    power: float = Field(default=1.0, ge=0)
    layer: TowerLayerNumber = -2

    def select(self, ctx: PruneContext) -> Selection:
        """See :meth:`tokenprune.pruners.base.Pruner.select`."""
        tower_attention = ctx.vision(self.layer).attention
        ctx.check_finite(ctx.hidden.abs().amax(-1) + tower_attention, type(self).__name__)
        images = ctx.per_image
        crops = Crops(images.sizes, images.max_size, self.crops)
        attention = crops.split(images.split(tower_attention)).masked_fill(~crops.valid, 0.0)
        similarity = self_similarity(crops.split(images.split(ctx.hidden)))
        variance = similarity_variance(similarity, crops.valid)
        count = crops.sizes.clamp(min=1)
        level, spread = attention.sum(-1) / count, variance.sum(-1) / count
        weight = (level * (1 + self.beta * spread / (spread + _SMALL))) ** self.power
        crop_quotas = allocate(images.quotas, weight, crops.sizes)
        order = attention.masked_fill(~crops.valid, -torch.inf).argsort(dim=-1, descending=True, stable=True)
        first = torch.arange(order.shape[-1], device=order.device) < crop_quotas[..., None]
        keep = torch.zeros_like(first).scatter(-1, order, first)
        return Selection(keep=images.join(crops.join(keep)))

    def flops(self, shape: Shape, visual: int, tokens: int) -> int:
        """The cosines within the crops."""
        return 2 * visual**2 * shape.width // self.crops
