"""CDPruner's selection: tokens that are relevant and dissimilar to each other, by a determinantal point process."""

from typing import Annotated

import torch
from pydantic import Field

from tokenprune.core.component import FromRegistry
from tokenprune.core.tunable import Tunable
from tokenprune.flops.decoder import Shape
from tokenprune.ops.cosine import self_similarity
from tokenprune.ops.dpp import greedy_map, relevance_weights
from tokenprune.pruners.base import Pruner, Selection
from tokenprune.scorers.base import Scorer
from tokenprune.signals.context import PruneContext


class Dpp(Pruner):
    """Greedy MAP inference of a determinantal point process (DPP), image by image.

    The kernel is ``w_i cos(i, j) w_j``; the weight ``w`` of a token grows with its relevance. The cosines are those of
    hidden states: at layer 0 these are the projected visual features, as in the paper. The relevance is scaled to 0..1
    within each image. Ties keep the earlier position. When every token that is left is a linear combination of kept
    tokens (gains up to 1e-5 of the largest), the earliest tokens fill the quota.

    The named method ``cdpruner`` is the variant of OpenVINO GenAI, which works for every family (scorer
    ``instruction``, theta 0.5). The authors' LLaVA code computes the relevance with CLIP's text tower, which a Hugging
    Face LLaVA does not contain, and uses it as ``w`` without ``theta``. **That variant is not included.** Any scorer
    can be the ``relevance``, so it takes one more file, a scorer that loads the text tower, and ``theta: null``.

    Differs from the authors' code: the relevance, see above. What follows it (scaling, kernel, greedy choice) was
    compared with that code, given its relevance. On LLaVA-NeXT that code has a quota for each tile of an image, scales
    the relevance over all tiles, and drops the row separators. Here the whole image has one quota, which is met
    exactly, and row separators are ordinary tokens.

    Source: "Beyond Attention or Similarity: Maximizing Conditional Diversity for Token Pruning in MLLMs",
    arXiv 2506.10967.

    Attributes:
        relevance: Scores the relevance of a token to the instruction. Only differences within an image matter.
        theta: Weight of relevance against diversity: ``w = exp(theta / (2 (1 - theta)) relevance)``. With 0 only
            diversity counts. None uses the scaled relevance itself as ``w``.
    """

    relevance: Annotated[Scorer, FromRegistry("scorers")]
    theta: Annotated[float | None, Tunable(0.2, 0.5, 0.8)] = Field(default=0.5, ge=0, lt=1)

    def select(self, ctx: PruneContext) -> Selection:
        """See :meth:`tokenprune.pruners.base.Pruner.select`."""
        ctx.check_finite(ctx.hidden.sum(-1, dtype=torch.float32), type(self).__name__)
        images = ctx.per_image
        scores = self.relevance.checked(ctx)
        weights = relevance_weights(images.split(scores), images.valid, self.theta)
        states = images.split(ctx.hidden)
        kernel = self_similarity(states).mul_(weights[:, :, None]).mul_(weights[:, None, :])
        keep = greedy_map(kernel, images.valid, images.quotas, images.max_quota)
        return Selection(keep=images.join(keep), scores=scores)

    def flops(self, shape: Shape, visual: int, tokens: int) -> int:
        """The matrix of cosines, and the relevance. The Cholesky steps depend on the budget and are not counted."""
        return 2 * visual**2 * shape.width + self.relevance.flops(shape, visual, tokens)
