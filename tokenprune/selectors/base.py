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
    """What a layer selector may know of a model.

    Attributes:
        family: The adapter's name, e.g. ``"llava"``.
        num_layers: Decoder layers.
        measure_entropy: Runs the calibration samples through the unpruned model and returns its entropy curves;
            None when :func:`tokenprune.apply` was given no calibration samples.
        last_logits: Runs the calibration samples with the method pruning before the given layer (None: unpruned) and
            returns the last prompt tokens' logits, float32 ``[samples, vocabulary]`` on the host; None without samples.
    """

    family: str
    num_layers: int
    measure_entropy: Callable[[], EntropyProfile] | None = None
    last_logits: Callable[[int | None], Tensor] | None = None


@dataclass(frozen=True)
class LayerChoice:
    """The layers before which tokens are dropped, ascending, and one sentence that says why these."""

    layers: tuple[int, ...]
    reason: str


class LayerSelector(Component, ABC):
    """Says before which decoder layers to prune; layer 0 is the decoder's input."""

    @abstractmethod
    def select(self, profile: ModelProfile) -> LayerChoice:
        """Choose the layers.

        Raises:
            LayerError: A layer is outside the model, or none can be chosen.
        """
