"""HiPrune's selection: tokens of objects by a middle layer of the vision tower, the others by a deep layer."""

from typing import Annotated

import torch
from pydantic import Field

from tokenprune.core.tunable import Tunable, TunableLayer
from tokenprune.ops.topk import best_by_tier
from tokenprune.ops.windows import anchors_and_neighbours
from tokenprune.pruners.base import Pruner, Selection
from tokenprune.signals.context import Per, PruneContext
from tokenprune.signals.signal_reader import TowerLayerNumber


class HiPrune(Pruner):
    """Keep anchors and their neighbours by a middle layer of the vision tower, and the other tokens by a deep layer.

    Of k tokens to keep of an image, ``round(k * alpha / 5)`` are anchors: the tokens with the most attention in the
    object layer. Buffers are the four neighbours of each anchor on the grid. Registers fill the rest of the quota: the
    tokens with the most attention in the deep layer. Attention is what a patch receives from all tokens of the tower on
    average, class token included, mean over heads. Ties keep the earlier position, and halves round to even. If anchors
    and buffers exceed the quota, the buffers with the least attention in the object layer are dropped.

    Differs from the published code: neighbours are those on the grid, and an anchor at the edge has fewer. That
    code adds and subtracts 1 and the width of a row (24), and moves what lies outside to the nearest token of the
    image. So the neighbour to the right of a row's last token is the first token of the next row, and an anchor in
    the first or last row also keeps the image's first or last token (0 or 575). With anchors inside the image, both
    keep the same tokens. For Qwen2.5-VL that code can take a token twice and so keep fewer than asked for: to take
    anchors and buffers out of the deep layer's ranking, it subtracts 1 from sums of attention that can exceed 1. If
    anchors and buffers exceed the quota, that code fails. On LLaVA-NeXT that code keeps padding and drops the row
    separators; here padding is no token, and separators are chosen last. Several images have quotas in proportion
    to their tokens. A tower without the object layer is refused; name one of its middle layers instead.

    Source: "HiPrune: Training-Free Visual Token Pruning via Hierarchical Attention in Vision-Language Models",
    arXiv 2508.00553.

    Attributes:
        alpha: Share of the quota for anchors and buffers.
        object_layer: Middle layer of the tower, counted from 0; 8 is the ninth of CLIP-L's 24, as published for LLaVA.
            Published for Qwen2.5-VL is the sixteenth of 32: 15.
        deep_layer: Deep layer of the tower, negative from the end; the published code uses the layer from which LLaVA
            takes its features, and the last (-1) for Qwen2.5-VL.
        per: ``tile`` chooses in each tile of an image (LLaVA-NeXT), or frame of a video, by itself, as in the published
            code; ``image`` chooses in the whole image.
    """

    alpha: Annotated[float, Tunable(0.1, 0.3, 0.5)] = Field(default=0.1, ge=0, le=1)
    object_layer: Annotated[TowerLayerNumber, TunableLayer(1 / 3, 1 / 2, 2 / 3)] = 8
    deep_layer: Annotated[TowerLayerNumber, TunableLayer(2 / 3, 1.0)] = -2
    per: Per = "tile"

    @property
    def needs(self) -> frozenset[str]:
        """No signal of the language model; the token grid."""
        return frozenset({"grid"})

    def select(self, ctx: PruneContext) -> Selection:
        """See :meth:`tokenprune.pruners.base.Pruner.select`."""
        attention = [ctx.vision(layer).received for layer in (self.object_layer, self.deep_layer)]
        ctx.check_finite(attention[0] + attention[1], type(self).__name__)
        images = ctx.regions(self.per, self.deep_layer)
        middle, deep = map(images.split, attention)
        counts, most = images.counts(lambda quota: round(quota * self.alpha / 5))
        tiers = anchors_and_neighbours(middle, images.split(ctx.grid.coordinates), images.valid, counts, most)
        keep = best_by_tier(tiers, torch.where(tiers > 0, middle, deep), images.quotas)
        return Selection(keep=images.join(keep), scores=attention[1])
