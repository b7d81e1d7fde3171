"""VScan's selection before the language model: a local scan, a global scan, and merging."""

from typing import Annotated

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from tokenprune.core.tunable import Tunable, TunableLayer
from tokenprune.flops.decoder import Shape
from tokenprune.ops.merging import merge_into
from tokenprune.ops.topk import floor_share, topk_by_group
from tokenprune.ops.windows import best_of_windows, grid_windows, sized_windows
from tokenprune.pruners.base import Pruner, Selection
from tokenprune.signals.context import PruneContext
from tokenprune.signals.signal_reader import TowerLayerNumber


class VScan(Pruner):
    """Keep tokens by a local scan (shallow layer of the vision tower) and a global scan (deep layer); merge the others.

    Of k tokens to keep of an image, ``floor(k * local)`` are local, the others global. The local scan goes first: it
    takes the tokens with the most attention in the shallow layer, but at most ``ceil(local count / windows)`` of each
    window. The global scan takes the tokens with the most attention in the deep layer among those that are not local.
    Attention is the class token's (in a tower without one: the mean over all tokens), mean over heads. Every other
    token is averaged into the kept token that is most similar to it by cosine; all members of a mean have equal weight.
    Compared and averaged are the states that enter the language model, after the projector, as in the published code.
    Ties keep the earlier position, and merge into the earlier token.

    This is the first of the method's two stages. The second stage prunes by the last prompt token's attention in the
    middle of the language model (named method ``vscan``).

    The defaults are those of the published code for LLaVA-1.5: 4 x 4 windows (of 6 x 6 tokens), layer 5 counted from 0
    and the last but one. For Qwen2.5-VL it uses windows of 4 x 4 tokens, the first layer with attention to the whole
    image (7) and the last: ``window_size: 4, local_layer: 7, layer: -1``.

    Differs from the published code: if the windows do not divide the local count, the code for LLaVA takes the same
    number of each, rounded down, and so keeps fewer tokens than asked for; here the count is exact, by the rule of the
    code for Qwen2.5-VL, which is the one above. That code fails on an image smaller than a window, which is one window
    here, and where the tokens of a window do not suffice, which others fill up here. On LLaVA-NeXT that code gives each
    tile the same quota and windows of its own, and keeps the row separators in addition; here an image has one quota,
    and row separators are in no window. Several images have quotas of their own, in proportion to their tokens. A tower
    without the shallow layer is refused; name one of its layers instead.

    Source: "VScan: Rethinking Visual Token Reduction for Efficient Large Vision-Language Models", arXiv 2505.22654.

    Attributes:
        local: Share of the kept tokens that is local.
        windows: Number of windows in each direction of the image.
        window_size: Tokens of a window in each direction; takes the place of ``windows``. The last windows also get the
            rows and columns that are left.
        local_layer: Shallow layer of the tower, counted from 0.
        layer: Deep layer of the tower; negative from the end.
    """

    local: Annotated[float, Tunable(0.25, 0.5, 0.75)] = Field(default=0.5, ge=0, le=1)
    windows: PositiveInt = 4
    window_size: PositiveInt | None = None
    local_layer: Annotated[TowerLayerNumber, TunableLayer(0.2, 1 / 3)] = 5
    layer: Annotated[TowerLayerNumber, TunableLayer(2 / 3, 1.0)] = -2

    @property
    def needs(self) -> frozenset[str]:
        """Hidden states, and the token grid."""
        return frozenset({"hidden", "grid"})

    def select(self, ctx: PruneContext) -> Selection:
        """See :meth:`tokenprune.pruners.base.Pruner.select`."""
        attention = [ctx.vision(layer).attention for layer in (self.local_layer, self.layer)]
        ctx.check_finite(ctx.hidden.abs().amax(-1) + attention[0] + attention[1], type(self).__name__)
        images = ctx.per_image
        shallow, deep = map(images.split, attention)
        valid = images.valid
        counts, _ = images.counts(lambda quota: floor_share(quota, self.local))
        local = best_of_windows(shallow, self._windows(images.split(ctx.grid.coordinates), valid), valid, counts)
        rest = torch.where(valid & ~local, 0, -1)
        keep = local | topk_by_group(deep, rest, (images.quotas - counts)[:, None])
        hidden = images.split(ctx.hidden)
        merged, joined = merge_into(hidden, hidden, keep, valid & ~keep, images.max_quota, own_in_mean=True)
        return Selection(images.join(keep), images.join(merged), attention[1], images.join_places(joined))

    def _windows(self, grid: Tensor, valid: Tensor) -> Tensor:
        """Window of each token, long ``[images, n]``; -1 for tokens in none."""
        if self.window_size is None:
            return grid_windows(grid, valid, self.windows)
        return sized_windows(grid, valid, self.window_size)

    def flops(self, shape: Shape, visual: int, tokens: int) -> int:
        """An upper bound: the cosines of kept to other tokens if half are kept; sums are not counted."""
        return 2 * visual**2 // 4 * shape.width
