"""DART's selection: a few pivot tokens, and the tokens that are least similar to them."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from tokenprune.core.tunable import Tunable
from tokenprune.flops.decoder import Shape
from tokenprune.ops.gather import rows_at
from tokenprune.ops.pivots import least_similar
from tokenprune.pruners.base import Pruner, Selection
from tokenprune.signals.context import PruneContext


class Dart(Pruner):
    """Keep pivot tokens with large keys, and for each pivot the tokens whose hidden states are least similar to it.

    Pivots are the tokens whose keys at layer K-1 (after rotary embedding, as in the published code) have the largest L1
    norm: some of the image's tokens, and some of the text tokens after the sample's last visual token. Image pivots are
    kept. Each pivot in turn then keeps, of the tokens that are left, those with the lowest cosine similarity to it.
    Image pivots come first, then text pivots, each in descending order of norm. Ties keep the earlier position.

    Differs from the published code: that code keeps ``8 floor(N (1 - r) / 8)`` tokens in addition to the image pivots.
    Here all kept tokens together are the budget's exact count: the count without the image pivots is divided equally
    between all pivots, and the remainder goes one each to the first pivots. The published code visits pivots in the
    order of a Python set, and compares hidden states after the decoder's final norm; here they are compared without it.
    Several images are pruned one by one: each has its own image pivots, and all use the sample's text pivots. A sample
    with fewer tokens than pivots has fewer pivots.

    Source: "Stop Looking for Important Tokens in Multimodal Language Models: Duplication Matters More",
    arXiv 2502.11494.

    Attributes:
        image_pivots: Number of pivots in each image.
        text_pivots: Number of pivots among the text tokens.
    """

    image_pivots: Annotated[int, Tunable(1, 4, 8)] = Field(default=4, ge=1)
    text_pivots: Annotated[int, Tunable(0, 4)] = Field(default=4, ge=0)

    @property
    def needs(self) -> frozenset[str]:
        """Hidden states, and the attention of layer K-1, which includes its keys and the rotary embedding."""
        return frozenset({"hidden", "attention"})

    def select(self, ctx: PruneContext) -> Selection:
        """See :meth:`tokenprune.pruners.base.Pruner.select`."""
        ctx.check_finite(ctx.hidden.abs().amax(-1), type(self).__name__)
        norms = key_norms(ctx)
        visual_norms = norms.gather(1, ctx.visual_rows)
        ctx.check_finite(visual_norms, type(self).__name__)
        images = ctx.per_image
        states = images.split(ctx.hidden)

        image_counts = images.quotas.clamp(max=self.image_pivots)
        image_index, is_image_pivot = largest(images.split(visual_norms), images.valid, self.image_pivots)
        is_image_pivot &= torch.arange(image_index.shape[1], device=image_index.device) < image_counts[:, None]
        kept_pivots = torch.zeros_like(images.valid).scatter(1, image_index, is_image_pivot)

        rows = torch.arange(norms.shape[1], device=norms.device)
        last_visual_row = ctx.visual_rows.amax(1, keepdim=True)  # padding has row 0
        text_index, is_text_pivot = largest(norms, ctx.text_mask & (rows > last_visual_row), self.text_pivots)
        images_per_sample = len(states) // len(text_index)
        text_states = rows_at(ctx.hidden_rows, text_index).repeat_interleave(images_per_sample, dim=0)
        # an image without a quota has no pivots at all
        is_text_pivot = is_text_pivot.repeat_interleave(images_per_sample, dim=0) & (image_counts > 0)[:, None]
        others = least_similar(
            states,
            images.valid & ~kept_pivots,
            torch.cat([rows_at(states, image_index), text_states], dim=1),
            torch.cat([is_image_pivot, is_text_pivot], dim=1),
            images.quotas - image_counts,
        )
        return Selection(keep=images.join(kept_pivots | others))

    def flops(self, shape: Shape, visual: int, tokens: int) -> int:
        """Cosines to the pivots, and the norms of all keys."""
        pivots = self.image_pivots + self.text_pivots
        return 2 * pivots * visual * shape.width + tokens * shape.kv_heads * shape.head_dim


def key_norms(ctx: PruneContext) -> Tensor:
    """L1 norm over all heads of every row's key at layer K-1, after rotary embedding, float32 ``[batch, rows]``.

    The norm depends on the rotation. Positions count from the sample's first token, so padding changes nothing.
    """
    return ctx.probe.rotated_keys().float().abs().sum((1, 3))


def largest(values: Tensor, allowed: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Find the ``count`` largest allowed values of each row, in descending order.

    Args:
        values: Floating ``[batch, n]``.
        allowed: Bool ``[batch, n]``.
        count: Number of values; fewer are returned if ``n`` is smaller.

    Returns:
        Their indices, long ``[batch, count]``, and which of these are allowed, bool ``[batch, count]``: a row may have
        fewer allowed values than ``count``.
    """
    order = values.masked_fill(~allowed, -torch.inf).argsort(dim=1, descending=True, stable=True)[:, :count]
    return order, allowed.gather(1, order)
