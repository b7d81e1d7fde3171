"""CLSE's token score: attention times how much the layers changed a token's high spatial frequencies."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from tokenprune.core.tunable import Tunable
from tokenprune.flops.decoder import Shape
from tokenprune.ops.gather import rows_at
from tokenprune.ops.spectrum import high_pass
from tokenprune.scorers.base import Scorer
from tokenprune.signals.context import PruneContext

_EPSILON = 1e-6  # of the published code


class Clse(Scorer):
    """FastV's attention times the evolution of a token's spectrum from the input of layer 0 to the input of layer K.

    The energy of a token is the mean magnitude over the channels of its high-pass filtered state
    (:func:`tokenprune.ops.spectrum.high_pass`), frame by frame on the token grid. With the energies a at layer 0 and b
    at layer K, the intensity is ``|b - a| / (mean of a + a + 1e-6)``, at most 1; the evolution is the sigmoid of its
    z-score over the image, divided by ``temperature``. The attention is that of the prompt's last token in layer K-1,
    mean over heads.

    A spectrum needs whole frames. Once an earlier stage has dropped tokens of an image, the score of that image is the
    attention alone, as in the published code, whose second and third stage read no spectrum. Means and z-scores are
    those of one image (all frames of a video). Tokens that are on no grid, such as the newlines of LLaVA-NeXT, take no
    part in them and have the evolution 1/2, that of a mean token; the published code knows no such tokens.

    Source: "CLSE: Cross-Layer Spectral Evolution for Token Pruning in Multimodal Large Language Models", arXiv
    2606.24165.

    Attributes:
        cutoff: Width of the high-pass filter, as a share of half the shorter side of the grid.
        temperature: Divisor of the z-score; a small one makes the evolution almost a threshold.
    """

    cutoff: Annotated[float, Tunable(0.1, 0.3)] = Field(default=0.1, gt=0)
    temperature: Annotated[float, Tunable(0.1, 1.0)] = Field(default=0.1, gt=0)

    @property
    def needs(self) -> frozenset[str]:
        """The states at both ends, attention rows of layer K-1, and the token grid."""
        return frozenset({"hidden", "embeddings", "attention", "grid"})

    def score(self, ctx: PruneContext) -> Tensor:
        """See :meth:`tokenprune.scorers.base.Scorer.score`."""
        attention = ctx.probe.rows(ctx.last_row[:, None]).mean(1)[:, 0].gather(1, ctx.visual_rows)
        return attention * self.evolution(ctx)

    def evolution(self, ctx: PruneContext) -> Tensor:
        """The factor of each token's attention, float32 ``[batch, n_visual]``; 1 in images that lost tokens."""
        images, grid = ctx.per_image, ctx.grid
        frames = images.split(grid.frames).masked_fill(~images.valid, -1)
        on_grid = frames >= 0
        places, sizes = images.split(grid.coordinates[..., 1:]), images.split(grid.frame_sizes)
        before, after = (
            high_pass(images.split(states), frames, places, sizes, self.cutoff, images.max_size)
            for states in (rows_at(ctx.prompt.embeddings, ctx.positions), ctx.hidden)
        )
        count = on_grid.sum(1, keepdim=True)
        usual = before.sum(1, keepdim=True) / count.clamp(min=1)
        intensity = ((after - before).abs() / (usual + before + _EPSILON)).clamp(max=1).masked_fill(~on_grid, 0.0)
        centred = (intensity - intensity.sum(1, keepdim=True) / count.clamp(min=1)).masked_fill(~on_grid, 0.0)
        deviation = (centred.square().sum(1, keepdim=True) / (count - 1).clamp(min=1)).sqrt()
        factor = (centred / (deviation + _EPSILON) / self.temperature).sigmoid()
        whole = (_count_equal(frames) == sizes.prod(-1)) | ~on_grid
        return images.join(torch.where(whole.all(1, keepdim=True), factor, 1.0))

    def flops(self, shape: Shape, visual: int, tokens: int) -> int:
        """The attention row, and an upper bound of the filter: all pairs of tokens, of both states."""
        return 2 * tokens * shape.heads * shape.head_dim + 4 * visual**2 * shape.width


def _count_equal(numbers: Tensor) -> Tensor:
    """How often each number stands in its row, long ``[rows, n]``."""
    ordered = numbers.sort(dim=1).values
    return torch.searchsorted(ordered, numbers, right=True) - torch.searchsorted(ordered, numbers)
