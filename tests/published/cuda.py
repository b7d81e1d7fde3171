"""Stands for `torch` in code that asks for CUDA's timers, or draws noise."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor


class Torch:
    """The module torch; the timers of CUDA do nothing, and uniform noise is zero."""

    cuda = SimpleNamespace(
        Event=lambda **_: SimpleNamespace(record=lambda: None, elapsed_time=lambda _: 0.0), synchronize=lambda: None
    )

    @staticmethod
    def rand(*shape: Any, **options: Any) -> Tensor:
        """No noise."""
        return torch.zeros(*shape, **options)

    def __getattr__(self, name: str) -> Any:
        """Everything else is torch's."""
        return getattr(torch, name)
