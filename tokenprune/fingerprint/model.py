"""The parts of a model on which its outputs depend."""

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

#: Attributes of modules that say where a model came from and where it lies, or that a forward changes.
PASSING = frozenset(
    {"name_or_path", "hf_device_map", "warnings_issued", "max_seq_len_cached", "gradient_checkpointing"}
)
#: Private attributes that decide what a PEFT layer computes.
PEFT = frozenset({"_active_adapter", "_disable_adapters"})
#: Entries of a config that say where it came from, and which version wrote it.
ORIGIN = frozenset({"_name_or_path", "transformers_version"})


@dataclass(frozen=True)
class Weight:
    """A tensor of a model, which is read in places.

    Attributes:
        name: Its name in the model.
        tensor: Its numbers; None where they are elsewhere.
    """

    name: str
    tensor: Tensor | None


def parts(model: nn.Module) -> Iterator[object]:
    """Config, settings and weights of a model, in a fixed order; numbers of weights are not copied.

    A weight that accelerate holds in memory is that weight, wherever it is computed with.
    """
    yield from (_plain(getattr(model, name, None)) for name in ("config", "generation_config"))
    for name, module in model.named_modules():
        yield name, type(module).__qualname__, _settings(module)
    stored = model.state_dict()
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, value in stored.items():
        if not isinstance(value, Tensor):
            yield name, value  # what a module adds to its weights
        elif value.device.type == "meta" or (name in parameters and not value.numel()):
            yield Weight(name, offloaded(model, name))
        else:
            yield Weight(name, value)
    for name, buffer in model.named_buffers():
        if name not in stored:
            yield Weight(name, _rounded(buffer))


def _plain(config: Any) -> str:
    """A config of transformers as text, without its origin."""
    return json.dumps(_without_origin(config.to_dict()), sort_keys=True, default=str) if config is not None else ""


def _without_origin(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _without_origin(item) for key, item in value.items() if key not in ORIGIN}
    return value


def _settings(module: nn.Module) -> dict[str, str]:
    """The plain attributes of a module, e.g. a norm's epsilon, LoRA's scaling, whether it trains; and how it attends.

    Implementations of the attention compute the same only as far as they know all of the model's features.
    """
    found = {"attention": repr(getattr(getattr(module, "config", None), "_attn_implementation", None))}
    for name, value in vars(module).items():
        if value is None:  # often what a forward sets, e.g. positions of the last prompt
            continue
        if (not name.startswith("_") and name not in PASSING) or name in PEFT:
            with suppress(TypeError, ValueError):  # no plain value
                found[name] = json.dumps(value, sort_keys=True)
    return found


def _rounded(buffer: Tensor) -> Tensor:
    """A buffer that is in no checkpoint: every machine computes it anew, and the last bits differ between machines."""
    return buffer.to(torch.bfloat16) if buffer.dtype in (torch.float32, torch.float64) else buffer


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
