"""Relevance to the instruction, without a text tower."""

from typing import Annotated, Literal

from torch import Tensor

from tokenprune.core.tunable import Tunable
from tokenprune.flops.decoder import Shape
from tokenprune.ops.cosine import cosine_similarity
from tokenprune.scorers.base import Scorer
from tokenprune.signals.context import PruneContext


class Instruction(Scorer):
    """Cosine similarity of a visual token to the mean of the sample's text tokens, in the decoder's embedding space.

    At layer 0 both are input embeddings: the projected visual features, and the embeddings of the text. All text tokens
    count, including those of the chat template (OpenVINO leaves out the tokens that mark the start and end of an
    image). The score is 0 if a sample has no text.

    Source: the relevance that OpenVINO GenAI gives CDPruner ("Beyond Attention or Similarity: Maximizing Conditional
    Diversity for Token Pruning in MLLMs", arXiv 2506.10967) for models without a text tower.

    Attributes:
        keep: ``similar`` gives similar tokens high scores. ``dissimilar`` reverses the sign, as the authors do for
            CLIP's own embeddings, where patches are dissimilar to the words that describe them.
    """

    keep: Annotated[Literal["similar", "dissimilar"], Tunable("similar", "dissimilar")] = "similar"

    @property
    def needs(self) -> frozenset[str]:
        """Hidden states, and which of them are text."""
        return frozenset({"hidden", "text"})

    def score(self, ctx: PruneContext) -> Tensor:
        """See :meth:`tokenprune.scorers.base.Scorer.score`."""
        text = ctx.text_mask[:, :, None]
        text_mean = ctx.hidden_rows.float().masked_fill(~text, 0.0).sum(1, keepdim=True) / text.sum(1, True).clamp(
            min=1
        )
        similarity = cosine_similarity(ctx.hidden, text_mean)[:, :, 0]
        return similarity if self.keep == "similar" else -similarity

    def flops(self, shape: Shape, visual: int, tokens: int) -> int:
        """The mean of the text, and one cosine per visual token."""
        return (tokens + 2 * visual) * shape.width
