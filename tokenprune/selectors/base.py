"""The contract of a layer selector."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from tokenprune.component import Component
from tokenprune.selectors.entropy_profile import EntropyProfile


@dataclass(frozen=True)
class ModelProfile:
    """What a layer selector can know about a model.

    Attributes:
        family: The adapter's name, e.g. ``"llava"``.
        num_layers: Number of decoder layers.
        measure_entropy: Runs the calibration samples through the unpruned model and returns its entropy curves.
            None if :func:`tokenprune.apply` got no calibration samples.
        last_logits: Runs the calibration samples with the method pruning before the given layer (None: unpruned) and
            returns the logits at the last prompt token, float32 ``[samples, vocabulary]`` on the host. None without
            calibration samples.
    """

    family: str
    num_layers: int
    measure_entropy: Callable[[], EntropyProfile] | None = None
    last_logits: Callable[[int | None], Tensor] | None = None


@dataclass(frozen=True)
class LayerChoice:
    """The layers that a selector chose.

    Attributes:
        layers: The layers before which tokens are dropped, ascending.
        reason: Why these layers, in one sentence.
    """

    layers: tuple[int, ...]
    reason: str


class LayerSelector(Component, ABC):
    """Chooses the decoder layers before which tokens are dropped. Layer 0 means the input of the decoder."""

    @abstractmethod
    def select(self, profile: ModelProfile) -> LayerChoice:
        """Choose the layers.

        Raises:
            LayerError: A layer does not exist in the model, or none can be chosen.
        """
