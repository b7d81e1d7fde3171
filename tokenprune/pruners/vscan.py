"""VScan's selection before the language model: a global and a local scan, and merging."""

from __future__ import annotations

import math

import torch
from pydantic import Field, PositiveInt

from tokenprune.context import PruneContext
from tokenprune.flops import Shape
from tokenprune.ops.merging import merge_into
from tokenprune.ops.topk import topk_by_group
from tokenprune.ops.windows import best_of_windows, grid_windows
from tokenprune.pruners.base import Pruner, Selection
from tokenprune.reader import TowerLayerNumber


class VScan(Pruner):
    """Keep what a deep layer of the vision tower attends to, and a shallow one in every window; merge the rest.

    Of k tokens to keep of an image ``floor(k * local)`` are local, the others global. Global tokens have most
    attention from the class token (without one: from all tokens on average; mean over heads) in the deep layer.
    Local tokens have most in the shallow layer, among those of their window that are not global, equally many in each
    window. Every other token is averaged into the kept one that it is most like by cosine, all with equal weight.
    Ties keep the earlier position, and merge into the earlier token.

    This is the first of the method's two stages; the second prunes by the last prompt token's attention in the middle
    of the language model (named method ``vscan``).

    Choices of ours, where the paper's text leaves it open: a token that both scans choose is global, and the local scan
    passes it over, so that the count is exact; there are 4 x 4 windows; of a count that the windows do not divide, what
    is left over goes to the windows whose next token has most attention; layer 6 is counted from 0.

    Differs from the paper: compared and averaged are the states that enter the language model, which the projector has
    made of the tower's. Several images have quotas of their own, in proportion to their tokens. A tower without the
    shallow layer is refused: name one of its layers.

    Source: "VScan: Rethinking Visual Token Reduction for Efficient Large Vision-Language Models", arXiv 2505.22654.

    Attributes:
        local: Share of the kept tokens that is local.
        windows: Windows in each direction of the image.
        local_layer: Shallow layer of the tower, from 0.
        layer: Deep layer of the tower; negative from the end.
    """

    local: float = Field(default=0.5, ge=0, le=1)
    windows: PositiveInt = 4
    local_layer: TowerLayerNumber = 6
    layer: TowerLayerNumber = -2

    def select(self, ctx: PruneContext) -> Selection:
        """See :meth:`tokenprune.pruners.base.Pruner.select`."""
        attention = [ctx.vision(layer).attention for layer in (self.local_layer, self.layer)]
        ctx.check_finite(ctx.hidden.abs().amax(-1) + attention[0] + attention[1], type(self).__name__)
        images = ctx.per_image
        shallow, deep = map(images.split, attention)
        valid = images.valid
        # for every quota on the host: what is rounded in double precision must not depend on the device;
        # the tiny addend makes 0.07 * 100 seven, not six
        counts = [math.floor(quota * self.local + 1e-9) for quota in range(images.max_quota + 1)]
        local = torch.tensor(counts, device=ctx.quotas.device)[images.quotas]
        chosen = topk_by_group(deep, torch.where(valid, 0, -1), (images.quotas - local)[:, None])
        windows = grid_windows(images.split(ctx.grid), valid, self.windows)
        keep = chosen | best_of_windows(shallow, windows, valid & ~chosen, local)
        hidden = images.split(ctx.hidden)
        merged = merge_into(hidden, hidden, keep, valid & ~keep, images.max_quota)
        return Selection(keep=images.join(keep), hidden=images.join(merged))

    def flops(self, shape: Shape, visual: int, tokens: int) -> int:
        """The cosines of kept tokens to others, at most: when half are kept; sums and comparisons are not counted."""
        return 2 * visual**2 // 4 * shape.width
