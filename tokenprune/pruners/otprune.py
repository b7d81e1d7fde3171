"""OTPrune's selection: tokens whose distribution is close to that of the whole image."""

from typing import Annotated

from pydantic import Field

from tokenprune.core.tunable import Tunable
from tokenprune.flops.decoder import Shape
from tokenprune.ops.dpp import alignment_kernel, greedy_map
from tokenprune.pruners.base import Pruner, Selection
from tokenprune.signals.context import PruneContext


class OTPrune(Pruner):
    """Greedy choice of the tokens with the largest ``det(I + gamma (X X^T)^2)``, image by image.

    ``X`` are the hidden states that enter the stage (at layer 0 the projected visual features, as in the paper), every
    channel divided by its norm over the tokens of the image. The determinant is the paper's stand-in for the distance
    of optimal transport between all tokens and the chosen ones. Each step takes the token that raises it most. Ties
    keep the earlier position. No eigenvalue of the matrix is below 1, so there is always a gain, also from a duplicate.

    Differs from the published code: that code passes the kept tokens to the language model in the order of a Python
    set of their numbers, which is neither theirs nor that of their gains; here every token keeps its place. It keeps
    the rows of the decomposition in the model's half precision; here they are float32. A channel that is 0 for every
    token makes its matrix NaN; here it does not count. Its refilling never happens, as there is always a gain. On
    LLaVA-NeXT it has one quota for all tiles and row separators, as here; it handles one image in a prompt, and here
    several images have quotas of their own, in proportion to their tokens. The text does not count, as in the code.

    Source: "OTPrune: Distribution-Aligned Visual Token Pruning via Optimal Transport", arXiv 2602.20205.

    Attributes:
        gamma: Weight of the tokens against the unit matrix.
    """

    gamma: Annotated[float, Tunable(0.001, 0.01, 0.1)] = Field(default=0.01, gt=0)

    def select(self, ctx: PruneContext) -> Selection:
        """See :meth:`tokenprune.pruners.base.Pruner.select`."""
        ctx.check_finite(ctx.hidden.abs().amax(-1), type(self).__name__)
        images = ctx.per_image
        kernel = alignment_kernel(images.split(ctx.hidden), images.valid, self.gamma)
        keep = greedy_map(kernel, images.valid, images.quotas, images.max_quota, negligible=0.0)
        return Selection(keep=images.join(keep))

    def flops(self, shape: Shape, visual: int, tokens: int) -> int:
        """The two matrix products. The Cholesky steps depend on the budget and are not counted."""
        return 2 * visual**2 * shape.width + 2 * visual**3
