"""ApET's token score: the error of rebuilding a token from a few others."""

from typing import Annotated, Literal

from pydantic import PositiveInt
from torch import Tensor

from tokenprune.core.tunable import Tunable, TunableLayer
from tokenprune.flops.decoder import Shape
from tokenprune.ops.rebuild import farthest_points, random_shares, rebuild_errors
from tokenprune.scorers.base import Scorer
from tokenprune.signals.context import PruneContext
from tokenprune.signals.signal_reader import TowerLayerNumber


class RebuildError(Scorer):
    """How badly a token is rebuilt as a linear combination of a few tokens of its image: its L2 error.

    The few tokens are a basis by farthest-point sampling from a random start: each is the token whose nearest basis
    token is farthest. The coefficients are those of least squares with 1e-5 on the diagonal, in float64. Tokens of the
    basis have errors near 0. No attention, no text.

    Source: "ApET: Approximation-Error Guided Token Compression for Efficient VLMs", arXiv 2602.19870. The pruner
    ``apet`` is the whole method, which also merges.

    Attributes:
        basis: Number of tokens to rebuild from; an image with fewer tokens has that many.
        source: ``tower`` rebuilds the states that leave ``layer`` of the vision tower, before the projector, ``hidden``
            the states that enter the stage.
        layer: Layer of the vision tower, negative from the end; read with ``source: tower`` only.
        seed: Seed of the start. The start depends on it and on the sample, not on the batch that contains the sample.
    """

    basis: Annotated[PositiveInt, Tunable(5, 10, 20)] = 10
    source: Annotated[Literal["tower", "hidden"], Tunable("tower", "hidden")] = "tower"
    layer: Annotated[TowerLayerNumber, TunableLayer(2 / 3, 1.0)] = -2
    seed: int = 0

    @property
    def needs(self) -> frozenset[str]:
        """Hidden states, and the numbers of the samples, which seed the start."""
        return frozenset({"hidden", "sample_ids"})

    @property
    def vision_layers(self) -> frozenset[int]:
        """The layer whose states are rebuilt, if they are the tower's."""
        return frozenset({self.layer} if self.source == "tower" else ())

    def score(self, ctx: PruneContext) -> Tensor:
        """See :meth:`tokenprune.scorers.base.Scorer.score`."""
        images = ctx.per_image
        states = images.split(ctx.hidden if self.source == "hidden" else ctx.vision(self.layer).features)
        patches = images.valid & (states != 0).any(-1)  # row separators have no features
        shares = random_shares(images.host_sizes, ctx.sample_ids, self.seed, images.most).to(states.device)
        points, exists = farthest_points(states, patches, shares, self.basis)
        return images.join(rebuild_errors(states, points, exists))

    def flops(self, shape: Shape, visual: int, tokens: int) -> int:
        """Distances, coefficients and rebuilding, at the decoder's width (of towers an upper bound)."""
        return visual * self.basis * (3 + 2 + 2) * shape.width
