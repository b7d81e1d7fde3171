"""DART's selection: a few pivots, and the tokens that duplicate them least."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from tokenprune.context import PruneContext
from tokenprune.flops import Shape
from tokenprune.ops.pivots import least_similar
from tokenprune.pruners.base import Pruner, Selection


class Dart(Pruner):
    """Keep pivot tokens with large keys, and for every pivot the tokens whose hidden states are least like its own.

    Pivots are the tokens with the largest L1 norm of their keys at layer K-1 (after rotary embedding, as in the
    published code): some of the image, and some of the text after the sample's last visual token. Image pivots are
    kept; every pivot then takes the tokens of lowest cosine similarity to it from those that are left. Order: image
    pivots first, then text pivots, each by falling norm. Ties keep the earlier position.

    Differs from the published code: that keeps ``8 floor(N (1 - r) / 8)`` tokens *and* the image pivots, here all of
    it together is the budget's exact count (after the pivots an equal share each, the remainder one each to the first
    pivots). Its pivots take their turn in the order of a Python set. It passes the hidden states through the decoder's
    final norm, here they are compared as they are. Several images: each is pruned by itself, with its own image
    pivots, all with the sample's text pivots. A sample with fewer tokens than pivots has fewer pivots.

    Source: "Stop Looking for Important Tokens in Multimodal Language Models: Duplication Matters More",
    arXiv 2502.11494.

    Attributes:
        image_pivots: Pivots per image.
        text_pivots: Pivots among the text tokens.
    """

    image_pivots: int = Field(default=4, ge=1)
    text_pivots: int = Field(default=4, ge=0)

    @property
    def needs(self) -> frozenset[str]:
        """Hidden states and keys; the probe knows the rotary embedding."""
        return frozenset({"hidden", "attention"})

    def select(self, ctx: PruneContext) -> Selection:
        """See :meth:`tokenprune.pruners.base.Pruner.select`."""
        ctx.check_finite(ctx.hidden.abs().amax(-1), type(self).__name__)
        norms = key_norms(ctx)
        visual_norms = norms.gather(1, ctx.visual_rows)
        ctx.check_finite(visual_norms, type(self).__name__)
        images = ctx.per_image
        states = images.split(ctx.hidden)

        first = images.quotas.clamp(max=self.image_pivots)
        places, present = largest(images.split(visual_norms), images.valid, self.image_pivots)
        present = present & (torch.arange(places.shape[1], device=places.device) < first[:, None])
        pivots = torch.zeros_like(images.valid).scatter(1, places, present)

        rows = torch.arange(norms.shape[1], device=norms.device)
        last = ctx.visual_rows.amax(1, keepdim=True)  # padding has row 0
        texts, written = largest(norms, ctx.text_mask & (rows > last), self.text_pivots)
        per_sample = len(states) // len(texts)
        states_of = torch.cat(
            [taken(states, places), taken(ctx.hidden_rows, texts).repeat_interleave(per_sample, dim=0)], dim=1
        )
        # an image without a quota has no pivots at all
        written = written.repeat_interleave(per_sample, dim=0) & (first > 0)[:, None]
        others = least_similar(
            states, images.valid & ~pivots, states_of, torch.cat([present, written], dim=1), images.quotas - first
        )
        return Selection(keep=images.join(pivots | others))

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
    """Places of the ``count`` largest allowed values of each row, falling, and which of them there are."""
    order = values.masked_fill(~allowed, -torch.inf).argsort(dim=1, descending=True, stable=True)[:, :count]
    return order, allowed.gather(1, order)


def taken(states: Tensor, places: Tensor) -> Tensor:
    """The states at ``places``, ``[batch, picked, dim]``."""
    return states.gather(1, places[:, :, None].expand(-1, -1, states.shape[2]))
