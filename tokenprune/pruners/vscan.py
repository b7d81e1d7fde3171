"""VScan's selection before the language model: a global scan, a local scan, and merging."""

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
    """Keep tokens by a global scan (deep layer of the vision tower) and a local scan (shallow layer); merge the others.

    Of k tokens to keep of an image, ``floor(k * local)`` are local, the others global. Global tokens are those with the
    most attention in the deep layer: from the class token (in a tower without one: from all tokens on average), mean
    over heads. Local tokens are the tokens of each window with the most attention in the shallow layer that are not
    global, equally many in each window. Every other token is averaged into the kept token that is most similar to it by
    cosine; all members of a mean have equal weight. Ties keep the earlier position, and merge into the earlier token.

    This is the first of the method's two stages. The second stage prunes by the last prompt token's attention in the
    middle of the language model (named method ``vscan``).

    The paper's text leaves some details open. Here a token that both scans would choose is global, and the local scan
    skips it, so that the count is exact; there are 4 x 4 windows; if the windows do not divide the count, the remainder
    goes to the windows whose next token has the most attention; layer 6 is counted from 0.

    Differs from the paper: compared and averaged are the states that enter the language model, after the projector.
    Several images have quotas of their own, in proportion to their tokens. A tower without the shallow layer is
    refused; name one of its layers instead.

    Source: "VScan: Rethinking Visual Token Reduction for Efficient Large Vision-Language Models", arXiv 2505.22654.

    Attributes:
        local: Share of the kept tokens that is local.
        windows: Number of windows in each direction of the image.
        local_layer: Shallow layer of the tower, counted from 0.
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
        # a table of all quotas on the host: rounding in double precision must not depend on the device;
        # the tiny addend makes 0.07 * 100 seven, not six
        local_counts = [math.floor(quota * self.local + 1e-9) for quota in range(images.max_quota + 1)]
        local = torch.tensor(local_counts, device=ctx.quotas.device)[images.quotas]
        global_tokens = topk_by_group(deep, torch.where(valid, 0, -1), (images.quotas - local)[:, None])
        windows = grid_windows(images.split(ctx.grid), valid, self.windows)
        keep = global_tokens | best_of_windows(shallow, windows, valid & ~global_tokens, local)
        hidden = images.split(ctx.hidden)
        merged = merge_into(hidden, hidden, keep, valid & ~keep, images.max_quota)
        return Selection(keep=images.join(keep), hidden=images.join(merged))

    def flops(self, shape: Shape, visual: int, tokens: int) -> int:
        """An upper bound: the cosines of kept to other tokens if half are kept; sums are not counted."""
        return 2 * visual**2 // 4 * shape.width
