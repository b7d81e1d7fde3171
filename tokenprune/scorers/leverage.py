"""SVD-Prune's token score: leverage on the main directions of an image's tokens."""

from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from tokenprune.core.tunable import Tunable, TunableLayer
from tokenprune.flops.decoder import Shape
from tokenprune.ops.leverage import leverage_scores
from tokenprune.scorers.base import Scorer
from tokenprune.signals.context import PruneContext
from tokenprune.signals.signal_reader import TowerLayerNumber


class Leverage(Scorer):
    """Leverage score of a token: its share of the main directions of all tokens of its image.

    The matrix of an image's tokens is decomposed (SVD). ``k`` is the smallest number of singular values whose squares
    are the share ``variance`` of all squares. The score is the squared norm of the token's row in the first ``k`` left
    singular vectors, divided by ``k``. No attention, no text. The decomposition is computed in float64; on CUDA it
    synchronises host and device, because ``eigh`` reads its error codes.

    The authors' repository says that code will follow, so this could not be compared with theirs. It follows the
    paper's abstract and what others wrote of the paper: the tokens of the *vision encoder*, a rank by a share of
    variance. The size of that share is not known here (0.9 is common), nor whether tokens are centred first.

    Source: "SVD-Prune: Training-Free Token Pruning For Efficient Vision-Language Models", arXiv 2604.11530 (its second
    version is called "Beyond Attention Scores: SVD-Based Vision Token Pruning for Efficient Vision-Language Models").

    Attributes:
        variance: Share of the squared singular values that the main directions have, above 0, up to 1.
        source: ``tower`` decomposes the states that leave ``layer`` of the vision tower, before the projector,
            ``hidden`` the states that enter the stage.
        layer: Layer of the vision tower, negative from the end; read with ``source: tower`` only.
        centred: Whether the mean over an image's tokens is subtracted first. Without it, the first direction is close
            to that mean.
    """

    variance: Annotated[float, Tunable(0.8, 0.9, 0.99)] = Field(default=0.9, gt=0, le=1)
    source: Annotated[Literal["tower", "hidden"], Tunable("tower", "hidden")] = "tower"
    layer: Annotated[TowerLayerNumber, TunableLayer(2 / 3, 1.0)] = -2
    centred: bool = False

    @property
    def vision_layers(self) -> frozenset[int]:
        """The layer whose states are decomposed, if they are the tower's."""
        return frozenset({self.layer} if self.source == "tower" else ())

    def score(self, ctx: PruneContext) -> Tensor:
        """See :meth:`tokenprune.scorers.base.Scorer.score`."""
        images = ctx.per_image
        states = ctx.hidden if self.source == "hidden" else ctx.vision(self.layer).features
        return images.join(leverage_scores(images.split(states), images.valid, self.variance, self.centred))

    def flops(self, shape: Shape, visual: int, tokens: int) -> int:
        """The smaller Gram matrix and its eigenvectors (9 times the cube), at the decoder's width: an upper bound."""
        small, large = min(visual, shape.width), max(visual, shape.width)
        return 2 * small**2 * large + 9 * small**3
