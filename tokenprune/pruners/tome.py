"""ToMe's merging: similar tokens become their mean, by bipartite soft matching of the vision tower's keys."""

from __future__ import annotations

import torch
from pydantic import PositiveInt

from tokenprune.context import PruneContext
from tokenprune.flops import Shape
from tokenprune.ops.bipartite import mean_of_clusters, rounds_needed, soft_matching
from tokenprune.pruners.base import Pruner, Selection
from tokenprune.reader import TowerLayerNumber


class ToMe(Pruner):
    """Merge the tokens whose keys in the vision tower are most alike, a few in every step.

    In each step the tokens alternate between two sets. Every token of the first set has an edge to the one of the
    second set that its key is most like (cosine; keys are means over heads), and the r strongest edges merge: the
    token joins the other one, whose feature and key become means weighted by the number of tokens that each stands
    for. The next step goes on with what is left of the first set, followed by the second. r is the number of tokens to
    lose divided by ``steps``, rounded up; the last step merges what is left to merge, and where half of the tokens are
    fewer than r, further steps follow. The second token begins the first set: a class token, which is never merged,
    stands in front in the towers that the paper merges in. Ties: a token joins the earliest of equally like ones, and
    of equal edges those of the earlier token merge. Earlier is meant in the step's list. Cosines that differ from 1 by
    1e-6 at most are 1.

    What is kept of a cluster is the token that all others were merged into, at its own position in the sequence.

    Differs from the paper, which merges inside the vision tower, between attention and feed-forward of each layer: here
    the tower runs unchanged on all tokens, and what is merged is what the language model gets from it (the projected
    features at layer 0). No computation is saved in the tower, nothing there attends to clusters in proportion to their
    size, and all steps compare keys of one layer, averaged with their tokens and not computed anew after a merge.
    Several images have quotas of their own, in proportion to their tokens.

    Source: "Token Merging: Your ViT But Faster" (ToMe), arXiv 2210.09461.

    Attributes:
        steps: Steps to share the merging out to; the paper takes one per layer, 24 in a ViT-L.
        layer: Layer of the tower whose keys are compared; negative from the end.
    """

    steps: PositiveInt = 24
    layer: TowerLayerNumber = -2

    def select(self, ctx: PruneContext) -> Selection:
        """See :meth:`tokenprune.pruners.base.Pruner.select`."""
        keys = ctx.vision(self.layer).key
        ctx.check_finite(ctx.hidden.abs().amax(-1) + keys.abs().amax(-1), type(self).__name__)
        images = ctx.per_image
        counts = [
            pair
            for sizes, kept in zip(images.host_sizes, images.host_quotas, strict=True)
            for pair in zip(sizes, kept, strict=True)
            if pair[1] > 0
        ]
        rounds = rounds_needed(counts, lambda length, target: -(-(length - target) // self.steps))
        per_step = (images.sizes - images.quotas + self.steps - 1) // self.steps
        representative = soft_matching(images.split(keys), images.sizes, images.quotas, per_step, rounds)
        keep = (representative == torch.arange(images.max_size, device=representative.device)) & images.valid
        keep &= (images.quotas > 0)[:, None]
        hidden = mean_of_clusters(images.split(ctx.hidden), representative, keep, images.valid, images.max_quota)
        return Selection(keep=images.join(keep), hidden=images.join(hidden))

    def flops(self, shape: Shape, visual: int, tokens: int) -> int:
        """The cosines of all steps at most: nothing merged on the way, the tower's heads as large as the model's."""
        return self.steps * 2 * (visual // 2) ** 2 * shape.head_dim
