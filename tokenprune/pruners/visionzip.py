"""VisionZip's selection: dominant tokens by attention; the others are merged into contextual tokens."""

from typing import Annotated

import torch
from pydantic import Field

from tokenprune.core.tunable import Tunable, TunableLayer
from tokenprune.ops.merging import every_nth, merge_into, replace_at
from tokenprune.ops.topk import floor_share, topk_by_group
from tokenprune.pruners.base import Pruner, Selection
from tokenprune.signals.context import Per, PruneContext
from tokenprune.signals.signal_reader import TowerLayerNumber


class VisionZip(Pruner):
    """Keep the tokens with the most attention in the vision tower, and merge all others into a few contextual tokens.

    Of k tokens to keep of an image, ``floor(k * contextual)`` are contextual, the others dominant. Dominant tokens are
    those with the most attention from the class token (in a tower without one: from all tokens on average), mean over
    heads; ties keep the earlier position. Of the tokens that are left, in order, every n-th is contextual, beginning
    with the first; n is the number of tokens left divided by the number of contextual tokens, rounded down. Each of the
    others is merged into the contextual token with the most similar key (cosine; keys of the same layer before rotary
    embedding, mean over heads; ties: the earlier one). A contextual token becomes its own state plus the mean of the
    states merged into it, as in the published code. These are the tower's features, which leave the same layer, and the
    model's projector maps the sum. With the default share, 192, 128 and 64 tokens are the published 162 + 30, 108 + 20
    and 54 + 10.

    Where the projector does not get these features token by token, and at a stage behind layer 0, the states that enter
    the stage are summed in their place. Projectors map every patch alone in LLaVA-1.5 and LLaVA-NeXT; those of other
    families mix or pool patches. Row separators are not merged into other tokens.

    Differs from the published code: that code counts the class token as a dominant token and passes it to the
    language model, so its 54 + 10 are 53 patches, the class token and 10 merged ones; here all kept tokens are
    patches. That code puts the contextual tokens behind the dominant ones; here every token keeps its place. On
    LLaVA-NeXT that code keeps padding and drops the row separators; here padding is no token. Several images have
    quotas of their own, in proportion to their tokens.

    Source: "VisionZip: Longer is Better but Not Necessary in Vision Language Models", arXiv 2412.04467.

    Attributes:
        contextual: Share of the kept tokens that is contextual.
        layer: Layer of the tower whose attention and keys are read; negative from the end.
        per: ``tile`` chooses in each tile of an image (LLaVA-NeXT), or frame of a video, by itself, as in the published
            code; ``image`` chooses in the whole image.
    """

    contextual: Annotated[float, Tunable(0.0, 10 / 64, 0.3)] = Field(default=10 / 64, ge=0, lt=1)
    layer: Annotated[TowerLayerNumber, TunableLayer(2 / 3, 1.0)] = -2
    per: Per = "tile"

    def select(self, ctx: PruneContext) -> Selection:
        """See :meth:`tokenprune.pruners.base.Pruner.select`."""
        tower = ctx.vision(self.layer)
        project = tower.projector if ctx.layer == 0 else None
        states = ctx.hidden if project is None else tower.features
        magnitudes = [values.abs().amax(-1).float() for values in (ctx.hidden, tower.features, tower.key)]
        ctx.check_finite(sum(magnitudes, tower.attention), type(self).__name__)
        images = ctx.regions(self.per, self.layer)
        target_counts, most = images.counts(lambda quota: floor_share(quota, self.contextual))
        one_group = torch.where(images.valid, 0, -1)
        dominant = topk_by_group(images.split(tower.attention), one_group, (images.quotas - target_counts)[:, None])
        rest = images.valid & ~dominant
        targets = every_nth(rest, target_counts)
        is_patch = (images.split(tower.features) != 0).any(-1)  # row separators are none
        merged, joined = merge_into(
            images.split(states),
            images.split(tower.key),
            targets,
            rest & ~targets & is_patch,
            most,
            own_in_mean=False,
        )
        if project is not None:
            merged = replace_at(
                images.split(ctx.hidden),
                targets & is_patch,
                most,
                merged,
                lambda rows: project(rows.to(ctx.hidden.dtype)),
            )
        return Selection(
            images.join(dominant | targets), images.join(merged), tower.attention, images.join_places(joined)
        )
