"""PruneSID's selection: groups of tokens along principal components; in each, salient tokens that are not alike."""

from typing import Annotated

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from tokenprune.core.tunable import Tunable, TunableLayer
from tokenprune.flops.decoder import Shape
from tokenprune.ops.cosine import self_similarity
from tokenprune.ops.group_quotas import group_quotas
from tokenprune.ops.per_image import PerImage
from tokenprune.ops.principal import principal_groups
from tokenprune.ops.suppression import suppress
from tokenprune.ops.topk import topk_by_group
from tokenprune.pruners.base import Pruner, Selection
from tokenprune.signals.context import Per, PruneContext
from tokenprune.signals.signal_reader import TowerLayerNumber

_CAP, _PER = 5, 64  # a group keeps at most five tokens for every 64 of the quota


class PruneSID(Pruner):
    """Group the tokens by principal component; keep in each group the tokens with most attention that are not alike.

    Of k tokens to keep of an image, there are ``floor(k / tokens_per_group)`` groups, at least one
    (:func:`tokenprune.ops.principal.principal_groups`). In a group, a token survives if no survivor with more
    attention has a cosine to it above ``threshold * k / n`` times the mean cosine of all pairs of the image's n patches
    (:func:`tokenprune.ops.suppression.suppress`). A group may keep five tokens for every 64 of the quota, begun ones
    included, and its quota follows from its survivors (:func:`tokenprune.ops.group_quotas.group_quotas`). It keeps its
    survivors in descending order of attention, then its other tokens. Attention is the class token's (in a tower
    without one: the mean over all tokens), mean over heads. Components and cosines are those of the states that leave
    the same layer of the tower. Ties keep the earlier position. Row separators are in no group, and are chosen last.

    Differs from the published code: that code computes the components with a randomised algorithm, so that it keeps
    other tokens every time; here they are exact. It keeps the class token as one of the k; here all kept tokens are
    patches. It passes the tokens on group by group; here they keep their order. It has the threshold ``k / 32``, which
    is ``18 k / n`` for the 576 patches of LLaVA, and divides a quota by rounded cumulative sums in float32, where
    rounding decides about halves. On LLaVA-NeXT it keeps padding; here padding is no token. Its other version, for
    Qwen2-VL, ranks by the weight in the component in place of the attention, on tokens after the projector; it is not
    included.

    Source: "Prune Redundancy, Preserve Essence: Vision Token Compression in VLMs via Synergistic Importance-Diversity"
    (PruneSID), arXiv 2603.09480.

    Attributes:
        tokens_per_group: Kept tokens for each principal component.
        threshold: Cosine above which tokens are alike, as a multiple of the share kept times the mean cosine.
        layer: Layer of the tower whose attention and features are read; negative from the end.
        per: ``tile`` chooses in each tile of an image (LLaVA-NeXT), or frame of a video, by itself, as in the published
            code; ``image`` chooses in the whole image.
    """

    tokens_per_group: Annotated[PositiveInt, Tunable(2, 4, 8)] = 4
    threshold: Annotated[float, Tunable(4.5, 18.0)] = Field(default=18.0, gt=0)
    layer: Annotated[TowerLayerNumber, TunableLayer(2 / 3, 1.0)] = -2
    per: Per = "tile"

    def select(self, ctx: PruneContext) -> Selection:
        """See :meth:`tokenprune.pruners.base.Pruner.select`."""
        tower = ctx.vision(self.layer)
        ctx.check_finite(tower.features.abs().amax(-1) + tower.attention, type(self).__name__)
        images = ctx.regions(self.per, self.layer)
        keep = self.choose(images, images.split(tower.features), images.split(tower.attention), class_tokens=0)
        return Selection(keep=images.join(keep), scores=tower.attention)

    def choose(self, images: PerImage, features: Tensor, attention: Tensor, class_tokens: int) -> Tensor:
        """The tokens to keep, image by image.

        Args:
            images: The layout, with quotas.
            features: States that leave the layer, floating ``[images, n, width]``.
            attention: Attention of each token, floating ``[images, n]``.
            class_tokens: How many of each quota are something else: 1 as in the published code, or 0.

        Returns:
            Bool ``[images, n]``.
        """
        patches = images.valid & (features != 0).any(-1)
        n = patches.sum(1)
        counts, most = images.counts(lambda quota: max(1, min(quota // self.tokens_per_group, features.shape[-1] - 1)))
        groups = principal_groups(features, patches, counts, most)
        similarity = self_similarity(features.nan_to_num())
        pairs = similarity.masked_fill(~(patches[:, :, None] & patches[:, None, :]), 0.0).triu(1).sum((1, 2))
        mean = pairs / (n * (n - 1) / 2).clamp(min=1)
        survives = suppress(similarity, attention, groups, mean * (self.threshold * images.quotas / n.clamp(min=1)))

        of_group = groups[:, :, None] == torch.arange(most, device=groups.device)
        caps, _ = images.counts(lambda quota: _CAP * -(-quota // _PER))
        room = torch.minimum(images.quotas, n)
        quotas = group_quotas(
            of_group.sum(1),
            (of_group & survives[:, :, None]).sum(1),
            caps,
            torch.minimum(images.quotas - class_tokens, n),
            room,
            images.max_size,
        )
        order = attention.argsort(dim=1, descending=True, stable=True)
        places = torch.arange(images.max_size, 0, -1, device=order.device).expand_as(order)
        rank = torch.zeros_like(order).scatter(1, order, places)
        keep = topk_by_group(rank + images.max_size * survives, groups, quotas)
        others = images.valid & ~patches
        return keep | (others & (others.cumsum(1) <= (images.quotas - room)[:, None]))

    def flops(self, shape: Shape, visual: int, tokens: int) -> int:
        """The Gram matrix, its eigenvectors (9 times the cube) and the cosines, all of them at the decoder's width.

        An upper bound: towers are narrower, and tiles are decomposed one by one.
        """
        return 4 * visual**2 * shape.width + 9 * visual**3
