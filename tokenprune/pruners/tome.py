"""ToMe's merging: similar tokens are averaged, by bipartite soft matching of the vision tower's keys."""

from typing import Annotated

import torch
from pydantic import PositiveInt

from tokenprune.core.tunable import Tunable, TunableLayer
from tokenprune.flops.decoder import Shape
from tokenprune.ops.bipartite import mean_of_clusters, plan_rounds, soft_matching
from tokenprune.pruners.base import Pruner, Selection
from tokenprune.signals.context import PruneContext
from tokenprune.signals.signal_reader import TowerLayerNumber


class ToMe(Pruner):
    """Merge the tokens whose keys in the vision tower are most similar, a few in every step.

    In each step the tokens of a list alternate between two sets. Every token of the first set has one edge, to the
    token of the second set with the most similar key (cosine; keys are means over heads). The r strongest edges merge:
    the token of the first set joins the one of the second set, whose feature and key become means, weighted by the
    number of tokens that each stands for. The list of the next step is the rest of the first set, followed by the
    second set. r is the number of tokens to lose divided by ``steps``, rounded up. The last step merges what is left to
    merge; if half of the tokens are fewer than r, further steps follow. The first token of the list belongs to the
    second set, and the second token to the first, as in the paper, where a class token that never merges precedes them.
    Ties: a token joins the earliest of equally similar ones, and of equal edges the earlier token's merges; earlier
    refers to the list of the step. Cosines that differ from 1 by at most 1e-6 count as 1.

    The kept token of a cluster is the one that all others were merged into, at its own position in the sequence.

    Differs from the paper: the paper merges inside the vision tower, between attention and feed-forward of each layer.
    Here the tower runs unchanged on all tokens, and the merged features are those that the language model gets (the
    projected ones at layer 0). The tower therefore saves no computation, its attention is not weighted by cluster
    sizes, and all steps compare the keys of one layer, which are averaged with their tokens and not recomputed after a
    merge. Several images have quotas of their own, in proportion to their tokens.

    Source: "Token Merging: Your ViT But Faster" (ToMe), arXiv 2210.09461.

    Attributes:
        steps: Number of steps between which the merging is divided; the paper has one per layer, 24 in a ViT-L.
        layer: Layer of the tower whose keys are compared; negative from the end.
    """

    steps: Annotated[PositiveInt, Tunable(1, 8, 24)] = 24
    layer: Annotated[TowerLayerNumber, TunableLayer(2 / 3, 1.0)] = -2

    def select(self, ctx: PruneContext) -> Selection:
        """See :meth:`tokenprune.pruners.base.Pruner.select`."""
        keys = ctx.vision(self.layer).key
        ctx.check_finite(ctx.hidden.sum(-1, dtype=torch.float32) + keys.sum(-1), type(self).__name__)
        images = ctx.per_image
        # an image without a quota keeps nothing, so that nothing has to merge
        counts = [(size, quota or size) for size, quota in images.host_counts]
        rounds = plan_rounds(counts, lambda length, target: -(-(length - target) // self.steps))
        representative = soft_matching(images.split(keys), rounds)
        keep = (representative == torch.arange(images.max_size, device=representative.device)) & images.valid
        keep &= (images.quotas > 0)[:, None]
        hidden = mean_of_clusters(images.split(ctx.hidden), representative, keep, images.valid, images.max_quota)
        joined = representative.masked_fill(keep | ~images.valid | (images.quotas == 0)[:, None], -1)
        return Selection(images.join(keep), images.join(hidden), merged=images.join_places(joined))

    def flops(self, shape: Shape, visual: int, tokens: int) -> int:
        """An upper bound: the cosines of all steps if no token merged, with heads of the decoder's size."""
        return self.steps * 2 * (visual // 2) ** 2 * shape.head_dim
