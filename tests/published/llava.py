"""What several authors' code finds around it: a LLaVA model that returns the case's tensors, and towers for ours."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from tokenprune.testing import TowerTensors, make_context

SIDE, VISUAL = 24, 576


def unchanged(features: Tensor) -> Tensor:
    """A projector that changes nothing."""
    return features


def model(tower: Any, projector: Callable[[Tensor], Tensor] = unchanged, **attributes: Any) -> SimpleNamespace:
    """`self` of their `encode_images`: the tower is called, or its `forward`, and the projector."""
    inner = SimpleNamespace(get_vision_tower=lambda: tower, mm_projector=projector)
    return SimpleNamespace(get_model=lambda: inner, **attributes)


class Tower:
    """`self` of `forward` in the classes that replace LLaVA's tower: what it wraps shows the case's tensors.

    Args:
        attention: Attention of the class token at the last but one layer, ``[1, heads, 1, rows]``.
        states: What leaves that layer, ``[1, rows, width]``.
        key: Its keys, mean over heads, ``[1, rows, head_dim]``.
        settings: Numbers of tokens by the names that the code gives them.
    """

    def __init__(self, attention: Tensor, states: Tensor, key: Tensor, **settings: int) -> None:
        self.device, self.dtype = "cpu", torch.float32
        self.vision_tower = self
        self._seen = SimpleNamespace(attentions=[attention, None], hidden_states=[states, None])
        self._info = settings
        layers = [SimpleNamespace(metric=key), SimpleNamespace()]
        self.vision_model = SimpleNamespace(encoder=SimpleNamespace(layers=layers))

    def __call__(self, images: Tensor, output_hidden_states: bool, output_attentions: bool) -> SimpleNamespace:
        """All layers, whatever the images."""
        return self._seen


def grid(rows: int = SIDE, columns: int = SIDE) -> Tensor:
    """(frame, row, column) of the tokens of one image, ``[1, rows * columns, 3]``."""
    return torch.cartesian_prod(torch.zeros(1).long(), torch.arange(rows), torch.arange(columns))[None]


def layer(attention: Tensor, features: Tensor, key: Tensor | None = None) -> TowerTensors:
    """A layer of the tower, all ``[1, tokens, ...]``."""
    return TowerTensors(attention, attention, features if key is None else key, features)


def context(hidden: Tensor, keep: int, tower: Mapping[int, TowerTensors], **signals: Any) -> Any:
    """One image before layer 0, of which ``keep`` tokens stay."""
    return make_context(hidden, keep=keep, tower=tower, layer=0, num_layers=32, **signals)


def marked(mask: Tensor) -> list[int]:
    """Numbers of the true entries of ``[1, tokens]``."""
    return mask.reshape(-1).nonzero()[:, 0].tolist()


def line(width: int) -> Tensor:
    """A direction to project states on: one number stands for a state."""
    return torch.linspace(-1, 1, width, dtype=torch.float64)
