"""What travels with a picture from the processor to the model: the settings, and the numbers of tokens."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from tokenprune_vllm.settings import Settings


@dataclass(frozen=True)
class Note:
    """A picture's note.

    Attributes:
        settings: The settings, as JSON.
        tokens: Visual tokens of the picture.
        kept: Those that are kept.
        seed: A number made of the picture's pixels, with which random choices are seeded.
    """

    settings: str
    tokens: int
    kept: int
    seed: int

    @property
    def parsed(self) -> Settings:
        """The settings."""
        return Settings.model_validate_json(self.settings)

    @property
    def renumbered(self) -> bool:
        """Whether kept tokens have new positions, without gaps."""
        method = self.parsed.resolved()
        return method is not None and method.positions == "renumbered" and self.kept < self.tokens

    def written(self) -> Tensor:
        """As bytes, uint8 ``[length]``: vLLM carries tensors."""
        return torch.frombuffer(bytearray(json.dumps(asdict(self)).encode()), dtype=torch.uint8).clone()

    @classmethod
    def read(cls, data: Tensor) -> Note:
        """From its bytes."""
        return cls(**json.loads(bytes(data.flatten().tolist())))
