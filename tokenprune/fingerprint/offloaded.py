"""Weights that accelerate took off a model: its hooks hold them, and the model has tensors without numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn


def offloaded(model: nn.Module, name: str) -> Tensor | None:
    """A weight that a hook holds in memory. One on the disk is not read: it would take as long as a forward.

    Args:
        model: The model.
        name: The weight's name in the model's ``state_dict``.

    Returns:
        The weight; None if no hook holds it, or if it is on the disk.
    """
    parts = name.split(".")
    for depth in range(len(parts)):
        path, rest = ".".join(parts[:depth]), ".".join(parts[depth:])
        try:
            module = model.get_submodule(path)
        except AttributeError:
            return None
        for hook in _hooks(module):
            found = _in_memory(getattr(hook, "weights_map", None), rest)
            if found is not None:
                return found
    return None


def _hooks(module: nn.Module) -> Iterator[Any]:
    """The hook of a module, or those that it is made of."""
    hook = getattr(module, "_hf_hook", None)
    yield from getattr(hook, "hooks", (hook,))


def _in_memory(weights: Any, name: str) -> Tensor | None:
    """A weight of a hook's map, which may be a view of a larger one: its names then have a prefix there."""
    while hasattr(weights, "dataset") and hasattr(weights, "prefix"):
        weights, name = weights.dataset, f"{weights.prefix}{name}"
    held = getattr(weights, "state_dict", weights)  # the rest of this map is on the disk
    found = held.get(name) if isinstance(held, Mapping) else None
    return found if isinstance(found, Tensor) and found.device.type != "meta" else None
