"""VisionZip's selection: dominant tokens by attention, contextual tokens by merging the others."""

from __future__ import annotations

import math

import torch
from pydantic import Field

from tokenprune.context import PruneContext
from tokenprune.ops.merging import every_nth, merge_into
from tokenprune.ops.topk import topk_by_group
from tokenprune.pruners.base import Pruner, Selection
from tokenprune.reader import TowerLayerNumber


class VisionZip(Pruner):
    """Keep the tokens with most attention in the vision tower, and merge all others into a few contextual tokens.

    Of k tokens to keep of an image ``floor(k * contextual)`` are contextual, the others dominant: those with most
    attention from the class token (without one: from all tokens on average), mean over heads; ties keep the earlier
    position. Of what is left, in order, every n-th token is a contextual one, beginning with the first (n is the
    number of tokens left divided by the number of contextual ones, rounded down); each of the rest is averaged into
    the contextual token whose key is most like its own by cosine (keys of the same layer, mean over heads; ties: the
    earlier one). With the default share 192, 128 and 64 tokens are the published 162 + 30, 108 + 20 and 54 + 10.

    Differs from the published code: averaged are the states that enter the language model, which the projector has
    made of the tower's; the code averages before the projector, which is not linear. The code counts the class token
    as one of the dominant tokens and gives it to the language model; here all kept tokens are patches, at the
    positions that they had. Several images have quotas of their own, in proportion to their tokens.

    Source: "VisionZip: Longer is Better but Not Necessary in Vision Language Models", arXiv 2412.04467.

    Attributes:
        contextual: Share of the kept tokens that is contextual.
        layer: Layer of the tower whose attention and keys are read; negative from the end.
    """

    contextual: float = Field(default=10 / 64, ge=0, lt=1)
    layer: TowerLayerNumber = -2

    def select(self, ctx: PruneContext) -> Selection:
        """See :meth:`tokenprune.pruners.base.Pruner.select`."""
        tower = ctx.vision(self.layer)
        largest = [states.abs().amax(-1).float() for states in (ctx.hidden, tower.key)]
        ctx.check_finite(sum(largest, tower.attention), type(self).__name__)
        images = ctx.per_image
        # for every quota on the host: what is rounded in double precision must not depend on the device;
        # the tiny addend makes 0.07 * 100 seven, not six
        contextual = [math.floor(quota * self.contextual + 1e-9) for quota in range(images.max_quota + 1)]
        target_counts = torch.tensor(contextual, device=ctx.quotas.device)[images.quotas]
        one_group = torch.where(images.valid, 0, -1)
        dominant = topk_by_group(images.split(tower.attention), one_group, (images.quotas - target_counts)[:, None])
        rest = images.valid & ~dominant
        targets = every_nth(rest, target_counts)
        states = merge_into(images.split(ctx.hidden), images.split(tower.key), targets, rest & ~targets, contextual[-1])
        return Selection(keep=images.join(dominant | targets), hidden=images.join(states))
