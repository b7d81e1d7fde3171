"""Models whose logits are broken: what users see of a wrong dtype, or of damaged weights."""

from __future__ import annotations

import math
from typing import Any

import torch

from tests.support.toy import ToyModel
from tokenprune.models.base import LoadedModel


def toy(**generation: Any) -> LoadedModel:
    """The toy model with settings of ``generate``."""
    loaded = ToyModel().load()
    loaded.generation = generation
    return loaded


def break_prompts(loaded: LoadedModel, token: int | None = None, value: float = math.nan, pruned: bool = False) -> None:
    """Put a value into the logits of prompts.

    Args:
        loaded: The model.
        token: Only of prompts that hold this token; None for all.
        value: The value.
        pruned: Only where tokens were dropped.
    """
    model: Any = loaded.model
    rows: list[int] = []

    def see_states(module: Any, args: Any, output: torch.Tensor) -> None:
        rows[:] = [output.shape[1]]

    def spoil(module: Any, args: Any, kwargs: Any, output: Any) -> None:
        ids = kwargs["input_ids"]
        if ids.shape[1] == 1 or (pruned and rows[0] == ids.shape[1]):
            return
        chosen = torch.ones(len(ids), dtype=torch.bool) if token is None else (ids == token).any(1)
        output.logits[chosen, :, 7] = value

    model.model.language_model.norm.register_forward_hook(see_states)
    model.register_forward_hook(spoil, with_kwargs=True)


def letter(char: str) -> int:
    """The token of a letter of a toy question."""
    return 3 + ord(char) % 90
