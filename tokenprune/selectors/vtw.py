"""VTW's layer: from where on the visual tokens are not missed."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from tokenprune.errors import LayerError
from tokenprune.selectors.base import LayerChoice, LayerSelector, ModelProfile


class Vtw(LayerSelector):
    """The first layer from which all visual tokens can be dropped with next to no change of the next token.

    For every candidate layer K, from ``start`` on, the calibration samples run with the method's pruner and budget
    before K: with ``drop_all``, as in the paper, all visual tokens are gone there. The first K is taken where
    ``KL(dropped || whole)`` of the last prompt token's distributions, the mean over the samples, is at most
    ``threshold``. The direction is that of the published search; the remaining tokens keep their positions, its
    default. One forward per calibration batch and candidate, and one of the whole model. Nothing is stored: the
    search runs again with every ``apply``, so name the layer once it is known (``fixed``).

    Source: "Boosting Multimodal Large Language Models with Visual Tokens Withdrawal for Rapid Inference",
    arXiv 2405.05803.

    Attributes:
        start: The first candidate.
        threshold: The largest mean divergence, in nats.
        fallback: Layer to take without calibration samples, or where no layer qualifies; None: that is an error.
    """

    start: int = Field(default=5, ge=0)
    threshold: float = Field(default=0.003, ge=0)
    fallback: int | None = Field(default=None, ge=0)

    def select(self, profile: ModelProfile) -> LayerChoice:
        """See :meth:`tokenprune.selectors.base.LayerSelector.select`."""
        for name, layer in (("start", self.start), ("fallback", self.fallback)):
            if layer is not None and layer >= profile.num_layers:
                raise LayerError(
                    f"vtw: {name} layer {layer} is out of range: the model has {profile.num_layers} decoder layers",
                    f"use 0 to {profile.num_layers - 1}",
                )
        found = "no calibration samples were given"
        if profile.last_logits is not None:
            whole = profile.last_logits(None)
            smallest = float("inf")
            for layer in range(self.start, profile.num_layers):
                change = divergence(profile.last_logits(layer), whole)
                if change <= self.threshold:
                    return LayerChoice(
                        (layer,),
                        f"dropping all before layer {layer} changes the next token by {change:.2g} nats"
                        f" (at most {self.threshold:g})",
                    )
                smallest = min(smallest, change)
            found = f"no layer from {self.start} on is within {self.threshold:g} nats (best {smallest:.2g})"
        if self.fallback is None:
            raise LayerError(
                f"vtw cannot choose a layer of {profile.family!r}: {found}",
                "give apply(..., calibration=[...]), in experiments calibration: 8, or a fallback layer",
            )
        return LayerChoice((self.fallback,), f"{found}; fell back to layer {self.fallback}")


def divergence(dropped: Tensor, whole: Tensor) -> float:
    """Mean ``KL(dropped || whole)`` of next-token distributions in nats, computed in float64.

    Args:
        dropped: Logits, ``[samples, vocabulary]``.
        whole: Logits of the same samples.
    """
    one, other = (logits.double().log_softmax(-1) for logits in (dropped, whole))
    return float((one.exp() * (one - other)).sum(-1).mean())
