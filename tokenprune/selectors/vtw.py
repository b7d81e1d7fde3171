"""The layer of VTW: the first from which dropping all visual tokens hardly changes the output."""

import torch
from pydantic import Field
from torch import Tensor

from tokenprune.errors import LayerError
from tokenprune.selectors.base import LayerChoice, LayerSelector, SelectorContext


class Vtw(LayerSelector):
    """Prune before the first layer from which pruning hardly changes the distribution of the next token.

    For every candidate layer K, from ``start`` on, the calibration samples run with the method's pruner and budget
    before K; with ``drop_all``, as in the paper, the layers from K on see no visual tokens. The search takes the first
    K for which the mean over the samples of ``KL(pruned || unpruned)``, of the distributions at the last prompt token,
    is at most ``threshold``. The direction of the divergence is that of the published search; the remaining tokens keep
    their positions, which is its default. The search costs one forward pass per calibration batch and candidate, and
    one of the unpruned model. The result is not stored, so every ``apply`` searches again; use ``fixed`` once the layer
    is known.

    Source: "Boosting Multimodal Large Language Models with Visual Tokens Withdrawal for Rapid Inference",
    arXiv 2405.05803.

    Attributes:
        start: The first candidate layer.
        threshold: The largest mean divergence that is accepted, in nats. The published script uses 0.003 for
            LLaVA-1.5-7B and other checkpoints, 0.0005 for LLaVA-1.5-13B and 0.0001 for LLaVA-1.6-Vicuna-7B.
        fallback: The layer if there are no calibration samples or no layer qualifies; None raises an error instead.
    """

    start: int = Field(default=5, ge=0)
    threshold: float = Field(default=0.003, ge=0)
    fallback: int | None = Field(default=None, ge=0)

    @property
    def runs_the_method(self) -> bool:
        """See :attr:`tokenprune.selectors.base.LayerSelector.runs_the_method`."""
        return True

    def known_layers(self, ctx: SelectorContext) -> None:
        """See :meth:`tokenprune.selectors.base.LayerSelector.known_layers`."""
        for name, layer in (("start", self.start), ("fallback", self.fallback)):
            if layer is not None and layer >= ctx.num_layers:
                raise LayerError(
                    f"vtw: {name} layer {layer} is out of range: the model has {ctx.num_layers} decoder layers",
                    f"use 0 to {ctx.num_layers - 1}",
                )

    def select(self, ctx: SelectorContext) -> LayerChoice:
        """See :meth:`tokenprune.selectors.base.LayerSelector.select`."""
        self.known_layers(ctx)
        finding = "no calibration samples were given"
        if ctx.last_logits is not None:
            unpruned = ctx.last_logits(None)
            smallest = float("inf")
            for layer in range(self.start, ctx.num_layers):
                change = divergence(ctx.last_logits(layer), unpruned)
                if change <= self.threshold:
                    return LayerChoice(
                        (layer,),
                        f"dropping all before layer {layer} changes the next token by {change:.2g} nats"
                        f" (at most {self.threshold:g})",
                    )
                smallest = min(smallest, change)
            finding = f"no layer from {self.start} on is within {self.threshold:g} nats (best {smallest:.2g})"
        if self.fallback is None:
            raise LayerError(
                f"vtw cannot choose a layer of {ctx.family!r}: {finding}",
                "give apply(..., calibration=[...]), in experiments calibration: 8, or a fallback layer",
            )
        return LayerChoice((self.fallback,), f"{finding}; fell back to layer {self.fallback}")


def divergence(pruned: Tensor, unpruned: Tensor) -> float:
    """Mean ``KL(pruned || unpruned)`` of next-token distributions in nats, computed in float64.

    Args:
        pruned: Logits of the pruned model, ``[samples, vocabulary]``.
        unpruned: Logits of the unpruned model for the same samples.
    """
    log_p, log_q = (logits.double().log_softmax(-1) for logits in (pruned, unpruned))
    probabilities = log_p.exp()
    # a token that is ruled out adds nothing, also where both logits are minus infinity; NaN stays NaN
    terms = torch.where(probabilities == 0, 0.0, probabilities * (log_p - log_q))
    return float(terms.sum(-1).mean())
