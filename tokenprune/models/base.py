"""What an experiment needs of a model: the model itself, a way in (samples) and a way out (answers)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from tokenprune.component import Component
from tokenprune.tasks.base import Sample

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Encoder = Callable[[Sequence[Sample]], dict[str, torch.Tensor]]


@dataclass
class LoadedModel:
    """A model in memory, ready to answer samples.

    Attributes:
        model: The transformers model, in eval mode.
        processor: Its processor (images and text to tensors).
        name: The name for reports.
        encoder: Turns samples into a left-padded batch.
        visual_tokens: Visual tokens per image where that number is fixed, else ``None``.
    """

    model: PreTrainedModel
    processor: Any
    name: str
    encoder: Encoder = field(repr=False)
    visual_tokens: int | None = None

    def encode(self, samples: Sequence[Sample]) -> dict[str, torch.Tensor]:
        """A left-padded batch on the model's device, ready for ``model.generate(**batch)``."""
        return self.encoder(samples)

    def decode(self, ids: torch.Tensor) -> list[str]:
        """The generated texts, without special tokens and surrounding space."""
        texts: list[str] = self.processor.batch_decode(ids, skip_special_tokens=True)
        return [text.strip() for text in texts]


class ModelSpec(Component, ABC):
    """How to get a model: what an experiment's ``model:`` names."""

    @abstractmethod
    def load(self) -> LoadedModel:
        """Load the model.

        Raises:
            MissingDataError: The checkpoint or one of its parts is not on this machine.
        """
