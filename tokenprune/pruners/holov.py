"""HoloV's selection: every part of the image keeps a share of the tokens."""

from typing import Annotated

import torch
from pydantic import Field, PositiveInt

from tokenprune.core.tunable import Tunable, TunableLayer
from tokenprune.flops.decoder import Shape
from tokenprune.ops.crops import Crops, allocate, similarity_variance
from tokenprune.pruners.base import Pruner, Selection
from tokenprune.signals.context import PruneContext
from tokenprune.signals.signal_reader import TowerLayerNumber

_EPSILON = 1e-6  # keeps the division finite, as in the published code


class HoloV(Pruner):
    """Cut an image into crops, divide the quota between them, and keep the tokens with the most attention in each crop.

    Crops are runs of consecutive tokens. The score of a token is its attention in the vision tower, plus ``beta`` times
    the variance of its cosines to the other tokens of the crop, scaled so that the variances of a crop have the same
    mean as its attention. The weight of a crop is its mean score to the power ``power``. Crops have quotas in
    proportion to their weights: rounded down, and the remainder goes one each to the largest weights (ties: the earlier
    crop). What a crop cannot hold goes to the other crops by the same rule. Within a crop, ties keep the earlier
    position.

    With this scaling the mean score is ``attention * (1 + beta * v / (v + 1e-6))``, where ``attention`` and ``v`` are
    the means of attention and variance. Unless ``v`` is tiny, this is the mean attention times a constant. The same is
    true of the published code.

    Differs from the published code: that code passes the tokens of a crop on in descending order of attention, unless
    it keeps the whole crop; here all tokens stay in their order and at their positions. That code fills what a crop
    cannot hold with zero vectors. A crop of one token has its attention as weight, in the same unit as the other crops.
    Several images are cut one by one. Only the selection is implemented; the paper's refetching of dropped context is
    not.

    Source: "Don't Just Chase 'Highlighted Tokens' in MLLMs: Revisiting Visual Holistic Context Retention",
    arXiv 2510.02912.

    Attributes:
        crops: Crops per image; an image with fewer tokens has one crop per token.
        beta: Weight of the variance; attention has weight 1.
        power: Power of the crop weights; a larger value favours crops with large weights more.
        layer: Layer of the tower; negative from the end.
    """

    crops: Annotated[PositiveInt, Tunable(4, 16)] = 16
    beta: float = Field(default=0.09, ge=0)
    power: Annotated[float, Tunable(1.0, 2.0)] = Field(default=1.0, ge=0)
    layer: Annotated[TowerLayerNumber, TunableLayer(2 / 3, 1.0)] = -2

    def select(self, ctx: PruneContext) -> Selection:
        """See :meth:`tokenprune.pruners.base.Pruner.select`."""
        tower_attention = ctx.vision(self.layer).attention
        images = ctx.per_image
        crops = Crops(images.sizes, images.max_size, self.crops)
        attention = crops.split(images.split(tower_attention)).masked_fill(~crops.valid, 0.0)
        similarity = crops.self_similarity(images.split(ctx.hidden))
        own = images.join(crops.join(similarity.diagonal(dim1=-2, dim2=-1)))
        ctx.check_finite(own + tower_attention, type(self).__name__)
        variance = similarity_variance(similarity, crops.valid)
        count = crops.sizes.clamp(min=1)
        attention_mean, variance_mean = attention.sum(-1) / count, variance.sum(-1) / count
        weight = (attention_mean * (1 + self.beta * variance_mean / (variance_mean + _EPSILON))) ** self.power
        fillable = max(quota // max(1, size // self.crops) for size, quota in images.host_counts)
        crop_quotas = allocate(images.quotas, weight, crops.sizes, min(fillable + 1, self.crops))
        order = attention.masked_fill(~crops.valid, -torch.inf).argsort(dim=-1, descending=True, stable=True)
        within_quota = torch.arange(order.shape[-1], device=order.device) < crop_quotas[..., None]
        keep = torch.zeros_like(within_quota).scatter(-1, order, within_quota)
        return Selection(keep=images.join(crops.join(keep)), scores=tower_attention)

    def flops(self, shape: Shape, visual: int, tokens: int) -> int:
        """Cosines within the crops."""
        return 2 * visual**2 * shape.width // self.crops
