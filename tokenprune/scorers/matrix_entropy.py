"""EntropyPrune's token score: matrix entropy across heads."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import model_validator
from torch import Tensor

from tokenprune.core.tunable import Tunable
from tokenprune.flops.decoder import Shape
from tokenprune.ops.entropy import Backend, Normalization, matrix_entropy
from tokenprune.scorers.base import Scorer
from tokenprune.signals.context import PruneContext


class MatrixEntropy(Scorer):
    """Matrix entropy of a token's states across heads: a token whose heads disagree has a high score. No attention map.

    Rotary embedding rotates all heads of a token alike, which leaves the Gram matrix of the heads unchanged. The states
    are therefore read before rotary embedding.

    Source: "EntropyPrune: Matrix Entropy Guided Visual Token Pruning", arXiv 2602.17196.

    Attributes:
        source: States to score; ``hidden`` is split into as many slices as there are query heads.
        normalization: ``trace`` is the paper's definition, ``none`` the authors' published code. The two rank tokens
            differently, so they are two different methods.
        final_norm: Whether hidden states pass the decoder's final norm first, as in the authors' published code; only
            with ``source: hidden``.
        backend: ``triton`` is a kernel that has never run on a GPU; see :func:`tokenprune.ops.entropy.matrix_entropy`.
    """

    source: Annotated[Literal["query", "key", "value", "hidden"], Tunable("query", "key", "value", "hidden")] = "query"
    normalization: Annotated[Normalization, Tunable("trace", "none")] = "trace"
    final_norm: bool = False
    backend: Backend = "torch"

    @model_validator(mode="after")
    def _only_hidden_states_are_normed(self) -> Self:
        if self.final_norm and self.source != "hidden":
            raise ValueError(f"final_norm is for hidden states, and source is {self.source!r}: set source to hidden")
        return self

    @property
    def needs(self) -> frozenset[str]:
        """The states to score."""
        return frozenset({self.source, "final_norm"} if self.final_norm else {self.source})

    def score(self, ctx: PruneContext) -> Tensor:
        """See :meth:`tokenprune.scorers.base.Scorer.score`."""
        states: Tensor = getattr(ctx, self.source)
        if self.final_norm:
            states = ctx.final_norm(states)
        if self.source == "hidden":
            states = states.unflatten(-1, (ctx.num_heads, -1))
        return matrix_entropy(states, self.normalization, backend=self.backend)

    def flops(self, shape: Shape, visual: int, tokens: int) -> int:
        """The smaller Gram matrix, and its eigenvalues by tridiagonalisation (4/3 of the cube)."""
        heads, dim = shape.heads, shape.head_dim
        if self.source in ("key", "value"):
            heads = shape.kv_heads
        elif self.source == "hidden":
            dim = shape.width // heads
        small, large = min(heads, dim), max(heads, dim)
        return visual * (2 * small**2 * large + 4 * small**3 // 3)
