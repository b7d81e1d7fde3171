"""Relevance to the instruction without a text tower."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from tokenprune.context import PruneContext
from tokenprune.flops import Shape
from tokenprune.ops.cosine import cosine_similarity
from tokenprune.scorers.base import Scorer


class Instruction(Scorer):
    """Cosine similarity of a visual token to the average of the sample's text tokens, in the decoder's own space.

    At layer 0 both are input embeddings: projected visual features, and the embeddings of the text. All text tokens
    count, the chat template's included (OpenVINO leaves out the tokens that mark an image's start and end); 0 where a
    sample has none.

    Source: the relevance that OpenVINO GenAI gives CDPruner ("Beyond Attention or Similarity: Maximizing Conditional
    Diversity for Token Pruning in MLLMs", arXiv 2506.10967) for models without a text tower.

    Attributes:
        keep: ``similar`` scores similar tokens high. ``dissimilar`` turns the sign, as the authors do for CLIP's own
            embeddings, where patches look unlike the words that describe them.
    """

    keep: Literal["similar", "dissimilar"] = "similar"

    def score(self, ctx: PruneContext) -> Tensor:
        """See :meth:`tokenprune.scorers.base.Scorer.score`."""
        text = ctx.text_mask[:, :, None]
        average = ctx.hidden_rows.float().masked_fill(~text, 0.0).sum(1, keepdim=True) / text.sum(1, True).clamp(min=1)
        similarity = cosine_similarity(ctx.hidden, average)[:, :, 0]
        return similarity if self.keep == "similar" else -similarity

    def flops(self, shape: Shape, visual: int, tokens: int) -> int:
        """The average, and one cosine per visual token."""
        return (tokens + 2 * visual) * shape.width
