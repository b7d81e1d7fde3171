"""VisPruner's selection: half by the vision tower's attention, half by dropping near-duplicates."""

from __future__ import annotations

import math

import torch
from pydantic import Field, PositiveInt

from tokenprune.context import PruneContext
from tokenprune.flops import Shape
from tokenprune.ops.bipartite import drop_duplicates, rounds_needed
from tokenprune.pruners.base import Pruner, Selection
from tokenprune.reader import TowerLayerNumber


class VisPruner(Pruner):
    """Keep what the vision tower attends to, and of the rest what is not like something else.

    Of k tokens to keep of an image ``floor(k * important)`` are important: those with most attention from the class
    token (without one: from all tokens on average; mean over heads). The others make a list by falling attention,
    which is thinned out to ``k`` less the important ones: its entries alternate between two sets, every entry of the
    first set has a score, its largest cosine to one of the second set, and the ``per_round`` entries with the highest
    scores are dropped. What is left of the first set, by falling score, followed by the second set, is the list of the
    next round. Ties: of equally attended tokens the earlier position is the more important; of equal scores the
    earlier in the list is dropped. Cosines that differ from 1 by 1e-6 at most are 1.

    Differs from the published code: cosines are of the features that the language model gets (the projected ones), not
    of the tower's before the projector; a round drops no more than the first set has, and an odd list's last entry is
    in the first set (the code fails on both). An image has one quota, where the code gives one to
    every tile of LLaVA-NeXT; several images have quotas of their own, in proportion to their tokens.

    Source: "Beyond Text-Visual Attention: Exploiting Visual Cues for Effective Token Pruning in VLMs" (VisPruner),
    arXiv 2412.01818.

    Attributes:
        important: Share of the kept tokens that attention chooses.
        per_round: The most tokens that are dropped in a round.
        layer: Layer of the tower whose attention it is; negative from the end.
    """

    important: float = Field(default=0.5, ge=0, le=1)
    per_round: PositiveInt = 8
    layer: TowerLayerNumber = -2

    def select(self, ctx: PruneContext) -> Selection:
        """See :meth:`tokenprune.pruners.base.Pruner.select`."""
        attention = ctx.vision(self.layer).attention
        ctx.check_finite(ctx.hidden.abs().amax(-1) + attention, type(self).__name__)
        images = ctx.per_image
        # for every quota on the host: what is rounded in double precision must not depend on the device
        table = [self._important_count(quota) for quota in range(images.max_quota + 1)]
        important = torch.tensor(table, device=ctx.quotas.device)[images.quotas]
        counts = [
            (size - self._important_count(quota), quota - self._important_count(quota))
            for sizes, kept in zip(images.host_sizes, images.host_quotas, strict=True)
            for size, quota in zip(sizes, kept, strict=True)
        ]
        rounds = rounds_needed(counts, lambda length, target: self.per_round, odd_in_first=True)

        falling = images.split(attention).masked_fill(~images.valid, -1.0)
        falling = falling.argsort(dim=1, descending=True, stable=True)
        place = torch.arange(images.max_size, device=falling.device)
        keep = torch.zeros_like(images.valid).scatter(1, falling, place < important[:, None])
        rest = falling.gather(1, (place + important[:, None]) % images.max_size)
        keep |= drop_duplicates(
            images.split(ctx.hidden),
            rest,
            images.sizes - important,
            images.quotas - important,
            self.per_round,
            rounds,
        )
        return Selection(keep=images.join(keep))

    def _important_count(self, quota: int) -> int:
        """Important tokens of a quota; the tiny addend makes 0.07 * 100 seven, not six."""
        return math.floor(quota * self.important + 1e-9)

    def flops(self, shape: Shape, visual: int, tokens: int) -> int:
        """The matrix of cosines; comparisons are not counted, nor is the class token's attention."""
        return 2 * visual**2 * shape.width
