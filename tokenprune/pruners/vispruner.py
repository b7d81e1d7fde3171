"""VisPruner's selection: half of the tokens by the vision tower's attention, half by removing near-duplicates."""

from typing import Annotated, Literal

import torch
from pydantic import Field, PositiveInt

from tokenprune.core.tunable import Tunable, TunableLayer
from tokenprune.flops.decoder import Shape
from tokenprune.ops.bipartite import drop_duplicates, rounds_needed
from tokenprune.ops.topk import floor_share
from tokenprune.pruners.base import Pruner, Selection
from tokenprune.signals.context import Per, PruneContext
from tokenprune.signals.signal_reader import TowerLayerNumber


class VisPruner(Pruner):
    """Keep the tokens that the vision tower attends to; remove near-duplicates from the others, and keep the rest.

    Of k tokens to keep of an image, ``floor(k * important)`` are important: those with the most attention from the
    class token (in a tower without one: from all tokens on average), mean over heads. The other tokens form a list in
    descending order of attention, which is thinned out to the rest of the quota in rounds. In a round the entries of
    the list alternate between two sets. The score of an entry of the first set is its largest cosine to an entry of the
    second set; the ``per_round`` entries with the highest scores are dropped. The list of the next round is the rest of
    the first set, in descending order of score, followed by the second set. Cosines are those of the states that leave
    the same layer of the tower, before the projector, as in the published code. Ties: of tokens with equal attention,
    the earlier position is more important; of entries with equal scores, the earlier entry of the list is dropped.
    Cosines that differ from 1 by at most 1e-6 count as 1. Row separators, which are no patches of the tower, have no
    attention and count as duplicates of each other.

    Every round splits the list by the ranking of the round before, so one swap of two nearly equal scores changes
    what is kept from there on. Cosines are computed in float32 here. The published code computes them in the
    model's half precision, where rounding decides the rankings; on some inputs it does so in float32, too
    (``benchmarks/results/half_precision.md``).

    Differs from the published code: a round drops at most as many entries as the first set has, and the last entry
    of a list of odd length is in the first set (the published code fails in both cases). On LLaVA-NeXT that code
    keeps padding and drops the row separators; here padding is no token. Several images have quotas of their own,
    in proportion to their tokens.

    Source: "Beyond Text-Visual Attention: Exploiting Visual Cues for Effective Token Pruning in VLMs" (VisPruner),
    arXiv 2412.01818.

    Attributes:
        important: Share of the kept tokens that is chosen by attention.
        per_round: Number of tokens that a round drops, at most.
        layer: Layer of the tower whose attention and features are read; negative from the end.
        compare: ``tower`` compares the tower's features, ``projected`` the states that enter the language model.
        per: ``tile`` chooses in each tile of an image (LLaVA-NeXT), or frame of a video, by itself, as in the published
            code; ``image`` chooses in the whole image.
    """

    important: Annotated[float, Tunable(0.25, 0.5, 0.75)] = Field(default=0.5, ge=0, le=1)
    per_round: PositiveInt = 8
    layer: Annotated[TowerLayerNumber, TunableLayer(2 / 3, 1.0)] = -2
    compare: Annotated[Literal["tower", "projected"], Tunable("tower", "projected")] = "tower"
    per: Per = "tile"

    def select(self, ctx: PruneContext) -> Selection:
        """See :meth:`tokenprune.pruners.base.Pruner.select`."""
        tower = ctx.vision(self.layer)
        features = ctx.hidden
        if self.compare == "tower":  # separators are no patches: their features are 0, and like nothing
            features = tower.features.masked_fill((tower.features == 0).all(-1, keepdim=True), 1.0)
        ctx.check_finite(features.abs().amax(-1) + tower.attention, type(self).__name__)
        images = ctx.regions(self.per, self.layer)
        important, _ = images.counts(lambda quota: floor_share(quota, self.important))
        chosen = [(size, quota, floor_share(quota, self.important)) for size, quota in images.host_counts]
        counts = [(size - most, quota - most) for size, quota, most in chosen]
        rounds = rounds_needed(counts, lambda length, target: self.per_round, odd_in_first=True)

        order = (
            images.split(tower.attention).masked_fill(~images.valid, -1.0).argsort(dim=1, descending=True, stable=True)
        )
        rank = torch.arange(images.max_size, device=order.device)
        keep = torch.zeros_like(images.valid).scatter(1, order, rank < important[:, None])
        rest = order.gather(1, (rank + important[:, None]) % images.max_size)
        keep |= drop_duplicates(
            images.split(features),
            rest,
            images.sizes - important,
            images.quotas - important,
            self.per_round,
            rounds,
        )
        return Selection(keep=images.join(keep), scores=tower.attention)

    def flops(self, shape: Shape, visual: int, tokens: int) -> int:
        """The matrix of cosines, counted at the decoder's width: an upper bound, as towers are narrower.

        Comparisons and the attention of the tower are not counted.
        """
        return 2 * visual**2 * shape.width
