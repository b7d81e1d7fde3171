"""A pruner that chooses among an image's best tokens by a scorer."""

from typing import Annotated, Self

import torch
from pydantic import Field, WithJsonSchema, model_validator

from tokenprune.core.component import FromRegistry
from tokenprune.core.tunable import Tunable
from tokenprune.flops.decoder import Shape
from tokenprune.ops.gather import rows_at, with_rows
from tokenprune.ops.topk import floor_share, topk_by_group
from tokenprune.pruners.base import Pruner, Selection
from tokenprune.scorers.base import Scorer
from tokenprune.signals.context import PruneContext

#: The schema names no fields of the inner pruner: all pruners within one of them would double the whole schema.
ANY_PRUNER = {
    "anyOf": [
        {"type": "string"},
        {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]},
    ]
}


class Pool(Pruner):
    """Limit a pruner to the highest-scored tokens of each image: first what matters, then what differs.

    Of an image that keeps k tokens, the ``floor(factor k)`` tokens with the highest scores are the pool (ties: the
    earlier position). The pruner sees the pool as if the other tokens had been dropped before: it neither keeps them
    nor merges them. Attention rows that it reads are those of the layer as it ran, with all tokens. If the pool is the
    whole image, the pruner alone decides; with the factor 1 the scorer alone does.

    Not from a paper: it combines any scorer with any pruner. With ``max_min`` it is that pruner's own ``pool``.

    Attributes:
        scorer: Scores the tokens.
        pruner: Chooses among the pool. Pruners that divide a count between images themselves are refused.
        factor: Tokens in the pool per kept token.
    """

    scorer: Annotated[Scorer, FromRegistry("scorers")]
    pruner: Annotated[Pruner, FromRegistry("pruners"), WithJsonSchema(ANY_PRUNER)]
    factor: Annotated[float, Tunable(1.5, 2.0, 4.0)] = Field(default=2.0, ge=1)

    @model_validator(mode="after")
    def _one_image_at_a_time(self) -> Self:
        if self.pruner.shares_quota_itself or self.pruner.at(0) is not self.pruner:
            raise ValueError(
                f"{type(self.pruner).__name__} has no quota of its own for each image: give a pruner that has, e.g."
                " max_min"
            )
        return self

    @property
    def needs(self) -> frozenset[str]:
        """The signals of the scorer and of the pruner."""
        return self.scorer.needs | self.pruner.needs

    def check(self, layers: tuple[int, ...]) -> None:
        """See :meth:`tokenprune.pruners.base.Pruner.check`."""
        self.pruner.check(layers)

    def select(self, ctx: PruneContext) -> Selection:
        """See :meth:`tokenprune.pruners.base.Pruner.select`."""
        images = ctx.per_image
        sizes = [
            [min(size, floor_share(quota, self.factor)) for size, quota in zip(*counts, strict=True)]
            for counts in zip(images.host_sizes, images.host_quotas, strict=True)
        ]
        padded = [row + [0] * (images.most - len(row)) for row in sizes]
        pool_sizes = torch.tensor(padded, device=ctx.groups.device)
        scores = self.scorer.checked(ctx)
        pooled = topk_by_group(scores, ctx.groups, pool_sizes)
        pool, index = ctx.among(pooled, sizes)
        chosen = self.pruner.select(pool)
        keep = torch.zeros_like(ctx.visual_mask).scatter(1, index, chosen.keep & pool.visual_mask)
        merged = None
        if chosen.merged is not None:  # from the pool's visual axis to this one
            target = index.gather(1, chosen.merged.clamp(min=0)).masked_fill(chosen.merged < 0, -1)
            merged = torch.full_like(ctx.groups, -1).scatter(1, index, target.masked_fill(~pool.visual_mask, -1))
        if chosen.hidden is None:
            return Selection(keep, None, scores, merged)
        own = rows_at(ctx.hidden, index)
        states = torch.where(pool.visual_mask[:, :, None], chosen.hidden.to(own.dtype), own)
        return Selection(keep, with_rows(ctx.hidden, index, states), scores, merged)

    def flops(self, shape: Shape, visual: int, tokens: int) -> int:
        """Those of the scorer, and of the pruner on all tokens: an upper bound, as the pool depends on the budget."""
        return self.scorer.flops(shape, visual, tokens) + self.pruner.flops(shape, visual, tokens)
