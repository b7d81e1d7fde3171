"""EntropyPrune's token score: matrix entropy across heads."""

from typing import Annotated, Self

from pydantic import model_validator
from torch import Tensor

from tokenprune.core.tunable import Tunable
from tokenprune.flops.decoder import Shape
from tokenprune.ops.entropy import Backend, Normalization, covariance_trace, matrix_entropy
from tokenprune.scorers.head_states import HeadStates
from tokenprune.signals.context import PruneContext


class MatrixEntropy(HeadStates):
    """Matrix entropy of a token's states across heads: a token whose heads disagree has a high score. No attention map.

    Rotary embedding rotates all heads of a token alike, which leaves the Gram matrix of the heads unchanged. The states
    are therefore read before rotary embedding. A token that the vision tower makes of several patches is scored by the
    mean of their states.

    Source: "EntropyPrune: Matrix Entropy Guided Visual Token Pruning", arXiv 2602.17196, which scores queries of the
    language model. The states of the vision tower are ours.

    Attributes:
        source: States to score. ``hidden`` is split into as many slices as there are query heads.
        tower_layer: Layer of the vision tower whose states are scored, negative from the end; nothing of the language
            model is read then. None: the language model's states in layer K-1.
        normalization: ``trace`` is the paper's definition, ``none`` the authors' published code. The two rank tokens
            differently, so they are two different methods: ``none`` grows with the energy of the states where its
            eigenvalues are below 1/e, and falls with it where they are above. ``image`` is ours: each token's share of
            the entropy of the image, whose tokens' matrices are divided by the sum of their traces. It grows with
            entropy and energy, and does not depend on the scale of the states.
        final_norm: Whether hidden states pass the decoder's final norm first, as in the authors' published code; only
            with ``source: hidden``, and only in the language model.
        backend: ``triton`` is a kernel that has never run on a GPU; see :func:`tokenprune.ops.entropy.matrix_entropy`.
    """

    normalization: Annotated[Normalization, Tunable("trace", "none")] = "trace"
    final_norm: bool = False
    backend: Backend = "torch"

    @model_validator(mode="after")
    def _only_hidden_states_of_the_decoder_are_normed(self) -> Self:
        if self.final_norm and self.source != "hidden":
            raise ValueError(f"final_norm is for hidden states, and source is {self.source!r}: set source to hidden")
        if self.final_norm and self.tower_layer is not None:
            raise ValueError(
                "final_norm is the language model's, and the states are those of layer"
                f" {self.tower_layer} of the vision tower: leave out final_norm or tower_layer"
            )
        return self

    @property
    def needs(self) -> frozenset[str]:
        """The states to score, and the final norm."""
        return super().needs | (frozenset({"final_norm"}) if self.final_norm else frozenset())

    def score(self, ctx: PruneContext) -> Tensor:
        """See :meth:`tokenprune.scorers.base.Scorer.score`."""
        states = self.states(ctx)
        if self.final_norm:
            states = ctx.final_norm(states.flatten(-2)).unflatten(-1, states.shape[-2:])
        total = self._traces_of_image(states, ctx) if self.normalization == "image" else None
        return matrix_entropy(states, self.normalization, backend=self.backend, total=total)

    @staticmethod
    def _traces_of_image(states: Tensor, ctx: PruneContext) -> Tensor:
        """The traces of all tokens of each token's image together, float64 ``[batch, n_visual]``."""
        images = ctx.per_image
        traces = images.split(covariance_trace(states)).masked_fill(~images.valid, 0.0)
        return images.join(traces.sum(1, keepdim=True).expand_as(traces).contiguous())

    def flops(self, shape: Shape, visual: int, tokens: int) -> int:
        """The smaller Gram matrix, and its eigenvalues by tridiagonalisation (4/3 of the cube)."""
        small, large = sorted(self.sizes(shape))
        return visual * (2 * small**2 * large + 4 * small**3 // 3)
