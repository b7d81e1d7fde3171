"""HiPrune's selection: objects by a middle layer of the vision tower, the whole by a deep one."""

from __future__ import annotations

import torch
from pydantic import Field

from tokenprune.context import PruneContext
from tokenprune.ops.anchors import anchors_and_neighbours, best_by_tier
from tokenprune.pruners.base import Pruner, Selection
from tokenprune.reader import TowerLayerNumber


class HiPrune(Pruner):
    """Anchors and their neighbours by attention in a middle layer of the vision tower, the rest by a deep layer's.

    Of k tokens to keep of an image, ``round(k * alpha / 5)`` are anchors: those with most attention in the object
    layer. Buffers are their four neighbours on the grid. Registers fill the rest: the tokens with most attention in the
    deep layer. Attention is what a patch receives from all tokens of the tower on average, class token included, mean
    over heads. Ties keep the earlier position; halves round to even; should anchors and buffers exceed the quota,
    buffers with less attention in the object layer go.

    Differs from the published code: neighbours are those of the grid, where the code adds and subtracts 1 and 24 and
    so takes the first token of the next row for the right neighbour of a row's last; several images have quotas in
    proportion to their tokens. A tower without the object layer is refused: name one of its middle layers.

    Source: "HiPrune: Training-Free Visual Token Pruning via Hierarchical Attention in Vision-Language Models",
    arXiv 2508.00553.

    Attributes:
        alpha: Share of the budget for anchors and buffers.
        object_layer: Middle layer of the tower, from 0; 8 is the ninth of CLIP-L's 24, as published for LLaVA.
        deep_layer: Output layer; the published code takes the layer that LLaVA takes its features from.
    """

    alpha: float = Field(default=0.1, ge=0, le=1)
    object_layer: TowerLayerNumber = 8
    deep_layer: TowerLayerNumber = -2

    @property
    def needs(self) -> frozenset[str]:
        """Nothing of the language model."""
        return frozenset()

    def select(self, ctx: PruneContext) -> Selection:
        """See :meth:`tokenprune.pruners.base.Pruner.select`."""
        received = [ctx.vision(layer).received for layer in (self.object_layer, self.deep_layer)]
        ctx.check_finite(received[0] + received[1], type(self).__name__)
        images = ctx.per_image
        middle, deep = map(images.split, received)
        # for every quota on the host: what Python rounds in double precision must not depend on the device
        anchors = [round(quota * self.alpha / 5) for quota in range(images.max_quota + 1)]
        counts = torch.tensor(anchors, device=ctx.quotas.device)[images.quotas]
        tiers = anchors_and_neighbours(middle, images.split(ctx.grid), images.valid, counts, anchors[-1])
        keep = best_by_tier(tiers, torch.where(tiers > 0, middle, deep), images.quotas)
        return Selection(keep=images.join(keep))
