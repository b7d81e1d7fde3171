"""Maximal marginal relevance over any scorer: important tokens that are unlike the tokens kept before."""

from typing import Annotated, Literal

from pydantic import Field

from tokenprune.core.component import FromRegistry
from tokenprune.core.tunable import Tunable, TunableLayer
from tokenprune.flops.decoder import Shape
from tokenprune.ops.cosine import self_similarity
from tokenprune.ops.dpp import unit_range
from tokenprune.ops.greedy import maximal_marginal_relevance
from tokenprune.pruners.base import Pruner, Selection
from tokenprune.scorers.base import Scorer
from tokenprune.signals.context import PruneContext
from tokenprune.signals.signal_reader import TowerLayerNumber


class Mmr(Pruner):
    """Greedy maximal marginal relevance (MMR), image by image, with any scorer as the importance of a token.

    The scores of an image are scaled to 0 (lowest) to 1 (highest); all are 0 if they are equal. The token with the
    highest score comes first. Every further token is the one with the largest ``weight * importance - (1 - weight) *
    cos``; ``cos`` is its cosine to the kept token that is most similar to it. Ties keep the earlier position. Cosines
    that differ from 1 by at most 1e-6 count as 1; a zero vector (the tower's features of a row separator) has cosine 0
    to all others.

    Any registered scorer can be named, those of plugins, too: ``scorer: {name: fastv}`` at a layer behind the first
    one, ``scorer: {name: matrix_entropy, source: hidden}``, or the name of your own.

    Differs from the published code (IDPruner): there the importance comes from a *trained* scorer of 3B and 7B models,
    which no training-free method has; the choice that follows was compared with that code, given its scores. That code
    adds 1e-6 to the range by which it scales, so that importances of a narrow range (attention of less than 1e-5 in an
    image of very many tokens) count less. It has one quota for all images of a sample; here each image has its own.

    Source: "IDPruner: Harmonizing Importance and Diversity in Visual Token Pruning for MLLMs", arXiv 2602.13315;
    "The Use of MMR, Diversity-Based Reranking for Reordering Documents and Producing Summaries" (SIGIR 1998).

    Attributes:
        scorer: Scores the importance of a token. Only differences within an image matter.
        weight: Weight of the importance against diversity. With 1 this is ``topk``; with 0 only the first token is
            chosen by importance.
        compare: ``hidden`` compares the states that enter the stage, as in the published code; ``tower`` the states
            that leave ``layer`` of the vision tower, before the projector.
        layer: Layer of the vision tower, negative from the end; read with ``compare: tower`` only.
    """

    scorer: Annotated[Scorer, FromRegistry("scorers")]
    weight: Annotated[float, Tunable(0.3, 0.5, 0.7)] = Field(default=0.5, ge=0, le=1)
    compare: Annotated[Literal["hidden", "tower"], Tunable("hidden", "tower")] = "hidden"
    layer: Annotated[TowerLayerNumber, TunableLayer(2 / 3, 1.0)] = -2

    @property
    def vision_layers(self) -> frozenset[int]:
        """The layer whose features are compared, and those of the scorer."""
        return self.scorer.vision_layers | ({self.layer} if self.compare == "tower" else set())

    def select(self, ctx: PruneContext) -> Selection:
        """See :meth:`tokenprune.pruners.base.Pruner.select`."""
        states = ctx.hidden if self.compare == "hidden" else ctx.vision(self.layer).features
        ctx.check_finite(states.abs().amax(-1), type(self).__name__)
        images = ctx.per_image
        scores = self.scorer.checked(ctx)
        importance = unit_range(images.split(scores), images.valid)
        similarity = self_similarity(images.split(states))
        keep = maximal_marginal_relevance(
            similarity, importance, images.valid, images.quotas, images.max_quota, self.weight
        )
        return Selection(keep=images.join(keep), scores=scores)

    def flops(self, shape: Shape, visual: int, tokens: int) -> int:
        """The matrix of cosines, at the decoder's width (of towers an upper bound), and the scorer."""
        return 2 * visual**2 * shape.width + self.scorer.flops(shape, visual, tokens)
