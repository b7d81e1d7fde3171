"""Stands for the `LlamaModel` whose `forward` the authors changed."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any


def llama_model(layers: Sequence[Any], config: dict[str, Any] | None = None, **more: Any) -> SimpleNamespace:
    """A model without weights: eager attention, no cache, a norm that changes nothing.

    Args:
        layers: What their `forward` calls as decoder layers.
        config: Settings in addition to those that every version reads.
        more: Attributes of the model in addition.
    """
    settings = {"output_attentions": False, "output_hidden_states": False, "use_cache": False, **(config or {})}
    return SimpleNamespace(
        config=SimpleNamespace(**settings),
        gradient_checkpointing=False,
        training=False,
        _use_flash_attention_2=False,
        _use_sdpa=False,
        layers=list(layers),
        norm=lambda hidden: hidden,
        **more,
    )
