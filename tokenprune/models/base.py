"""The contract of a model in experiments: load it, encode samples, decode answers."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from pydantic import field_validator
from transformers import PreTrainedModel

from tokenprune.core.component import Component
from tokenprune.core.text import well_formed
from tokenprune.errors import ConfigError
from tokenprune.models.dtype import canonical
from tokenprune.tasks.base import Sample

Encoder = Callable[[Sequence[Sample]], dict[str, torch.Tensor]]


@dataclass
class LoadedModel:
    """A model in memory, ready to answer samples.

    Attributes:
        model: The transformers model, in eval mode.
        processor: Its processor (images and text to tensors).
        name: The name for reports.
        encoder: Makes a left-padded batch from samples.
        visual_tokens: Visual tokens per image if all images have equally many, else None.
        generation: Settings of ``generate`` that answers use; without them they are greedy.
    """

    model: PreTrainedModel
    processor: Any
    name: str
    encoder: Encoder = field(repr=False)
    visual_tokens: int | None = None
    generation: dict[str, Any] = field(default_factory=dict)

    def encode(self, samples: Sequence[Sample]) -> dict[str, torch.Tensor]:
        """A left-padded batch on the model's device, ready for ``model.generate(**batch)``.

        Raises:
            ConfigError: There are no samples.
        """
        if not samples:
            raise ConfigError("there are no samples to encode", "give at least one")
        return self.encoder(samples)

    def decode(self, ids: torch.Tensor) -> list[str]:
        """The texts of generated ids ``[batch, tokens]``, without special tokens and surrounding spaces."""
        texts: list[str] = self.processor.batch_decode(ids, skip_special_tokens=True)
        return [well_formed(text).strip() for text in texts]


class ModelSpec(Component, ABC):
    """Describes how to load a model; the base class of the components that ``model:`` of an experiment names."""

    @field_validator("dtype", mode="before", check_fields=False)
    @classmethod
    def _one_name(cls, value: Any) -> Any:
        """A precision by the one name that folders and fingerprints have, also of a plugin's model."""
        return canonical(value)

    def read_config(self) -> Any:
        """The model's transformers config, read without its weights: it decides which published settings fit.

        Raises:
            ConfigError: The model does not show it; or see :meth:`load`.
        """
        raise ConfigError(
            f"the model {type(self).__name__!r} does not show its config before it is loaded",
            "give a checkpoint; published settings can be chosen by a name that `tokenprune show METHOD` lists",
        )

    @abstractmethod
    def load(self) -> LoadedModel:
        """Load the model.

        Raises:
            MissingDataError: The checkpoint, or a part of it, is not available.
        """
