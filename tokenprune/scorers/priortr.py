"""PriorTR's token score: attention of the question, corrected by the attention that the image gets without one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from tokenprune.core.tunable import Tunable
from tokenprune.errors import ScoreError
from tokenprune.flops.decoder import Shape
from tokenprune.ops.gather import marked_first
from tokenprune.scorers.base import Scorer
from tokenprune.signals.context import PruneContext

_EPSILON = 1e-10  # of the published code: an image that gets no attention at all has score 0


class PriorTR(Scorer):
    """Pointwise information ``P * log(P / Q)`` between the attention of the question and that of a token before it.

    P is the attention of layer K-1 that the question's tokens pay to a visual token, mean over heads and over the rows
    of all tokens behind the sample's last image. Q is that of a single token right behind the image, mean over heads:
    in a causal model it has seen the image and not the question, so what it attends to is the model's habit. P and Q
    are divided by their sums over the tokens of the image, in float32. Only these rows of the attention are computed.

    The published code knows one image. Here every image has a token Q of its own, behind it, and P and Q are shares of
    its own tokens; the question is behind the last image. At a later stage, what follows the tokens that are left
    counts as behind the image. A prompt that ends with an image is an error. A decoder that attends in both directions
    (PaliGemma's prompts) shows the question to the token behind the image: Q is then no prior.

    Source: "PriorTR: Accelerating Multimodal Large Language Models with Prior-Corrected Token Reduction", arXiv
    2606.24156.

    Attributes:
        question: ``all`` averages over the tokens behind the last image, ``last`` reads the prompt's last token alone.
        skip: Tokens between the image and the token Q. The published code skips the end marker of InternVL's images,
            and reads the line break behind it.
    """

    question: Annotated[Literal["all", "last"], Tunable("all", "last")] = "all"
    skip: int = Field(default=0, ge=0)

    @property
    def needs(self) -> frozenset[str]:
        """Attention rows of layer K-1."""
        return frozenset({"attention"})

    def score(self, ctx: PruneContext) -> Tensor:
        """See :meth:`tokenprune.scorers.base.Scorer.score`."""
        behind = _Behind.images_of(ctx, self.skip)
        question = ctx.row_mask & (behind.number > behind.ends.amax(1, keepdim=True))
        if self.question == "last":
            posterior = ctx.probe.rows(ctx.last_row[:, None]).mean(1)[:, 0]
        else:
            # where nothing is behind the last image, the check above ends the prefill; until then nothing may be empty
            question = question.scatter(1, ctx.last_row[:, None], True)
            most = max(ctx.row_mask.shape[1] - sum(sizes) for sizes in ctx.per_image.host_sizes)
            posterior = ctx.probe.mean_of(question, max(1, most), ctx.last_row)
        prior = ctx.probe.rows(behind.rows).mean(1)
        own = prior.gather(2, ctx.visual_rows[:, None].expand(-1, prior.shape[1], -1))
        own = own.gather(1, ctx.groups.clamp(min=0)[:, None])[:, 0]
        p, q = _shares(ctx, posterior.gather(1, ctx.visual_rows)), _shares(ctx, own)
        return p * ((p + _EPSILON) / (q + _EPSILON)).log()

    def flops(self, shape: Shape, visual: int, tokens: int) -> int:
        """The attention rows: one for Q, and those of the question, of which the text is an upper bound."""
        rows = 2 if self.question == "last" else tokens - visual + 1
        return 2 * rows * tokens * shape.heads * shape.head_dim


def _shares(ctx: PruneContext, attention: Tensor) -> Tensor:
    """Attention of the visual tokens as shares of that of their image, float32 ``[batch, n_visual]``."""
    images = ctx.per_image
    values = images.split(attention).masked_fill(~images.valid, 0.0)
    return images.join(values / (values.sum(1, keepdim=True) + _EPSILON))


@dataclass(frozen=True)
class _Behind:
    """What follows the images of each sample.

    Attributes:
        number: Number of each row among the tokens of its sample, from 1, long ``[batch, rows]``.
        ends: Number of the last token of each image, long ``[batch, images]``; 0 for images that a sample lacks.
        rows: Row of the token behind each image, long ``[batch, images]``; the last one where there is none.
    """

    number: Tensor
    ends: Tensor
    rows: Tensor

    @classmethod
    def images_of(cls, ctx: PruneContext, skip: int) -> _Behind:
        """Find the tokens; the prefill fails if no token is behind an image."""
        images = ctx.per_image
        number = ctx.row_mask.long().cumsum(1)
        group = ctx.groups.masked_fill(~ctx.visual_mask, images.most)  # the last column takes the padding
        ends = number.new_zeros(len(number), images.most + 1)
        ends = ends.scatter_reduce(1, group, number.gather(1, ctx.visual_rows), "amax")[:, : images.most]
        wanted = ends + 1 + skip
        missing = (wanted > number[:, -1:]) & (ends > 0)
        ctx.check(
            missing.any(1),
            lambda sample: ScoreError(
                f"PriorTR: sample {sample} has no {'token' if not skip else f'{skip + 1} tokens'} behind an image",
                "write the question behind the images, or use a method that reads no attention of the text",
            ),
        )
        place, _ = marked_first(ctx.row_mask, ctx.row_mask.shape[1])
        last = number[:, -1:]
        rows = place.gather(1, torch.minimum(wanted, last).sub(1).clamp(min=0))
        return cls(number, ends, rows)
