"""Finds out from a decoder's attention module how it makes its queries, keys and values.

The states that are read have to be those that the model uses. A module that does anything unknown to them is refused.
"""

import inspect
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tokenprune.errors import UnsupportedModelError

STATES = ("query", "key", "value")

#: Names whose use in an attention's forward means that its weights cannot be computed row by row.
UNSUPPORTED_NAMES = frozenset(
    {"sinks", "attention_sink_bias", "lambda_init", "prepare_dynamic_mask", "attn_temperature_tuning", "indexer"}
)

#: ``rotate(states, cos, sin)`` for states ``[batch, heads, rows, head_dim]``.
Rotate = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Projection:
    """Reads one of query, key and value from a layer.

    Attributes:
        module: The linear layer whose output is observed.
        read: Turns that output ``[batch, rows, features]`` into ``[batch, rows, heads, head_dim]``, before
            rotary embedding and after any query/key normalisation.
    """

    module: nn.Module
    read: Callable[[Tensor], Tensor]


def names_used(module: nn.Module) -> tuple[str, ...]:
    """Global and attribute names in a module's forward, in the order of their first use."""
    forward: Any = inspect.unwrap(type(module).forward)
    return tuple(forward.__code__.co_names)


def projection(attention: Any, name: str, heads: int, key_heads: int, head_dim: int) -> Projection:
    """Where one of ``query``, ``key``, ``value`` of an attention module can be read.

    Args:
        attention: The attention module of a layer.
        name: One of the three.
        heads: Query heads.
        key_heads: Key and value heads.
        head_dim: Size of a head.

    Raises:
        UnsupportedModelError: The module is not built in a known way.
    """
    widths = {"query": heads * head_dim, "key": key_heads * head_dim, "value": key_heads * head_dim}
    separate = getattr(attention, f"{name[0]}_proj", None)
    fused = getattr(attention, "qkv_proj", None)
    if isinstance(separate, nn.Module):
        module, start, expected = separate, 0, widths[name]
    elif isinstance(fused, nn.Module):
        module, expected = fused, sum(widths.values())
        start = sum(widths[other] for other in STATES[: STATES.index(name)])
    else:
        raise _unreadable(attention, f"has no {name[0]}_proj and no qkv_proj")
    features = getattr(module, "out_features", expected)
    if features != expected:  # a gate beside the query, heads of another size, latent attention ...
        raise _unreadable(attention, f"makes {features} features where {expected} were expected for the {name}")
    normalise = _normaliser(attention, name, head_dim)

    def read(states: Tensor) -> Tensor:
        return normalise(states[..., start : start + widths[name]])

    return Projection(module, read)


def _normaliser(attention: Any, name: str, head_dim: int) -> Callable[[Tensor], Tensor]:
    """Splits heads and applies what the module applies to them before the rotary embedding."""
    used = names_used(attention)
    if getattr(getattr(attention, "config", None), "clip_qkv", None) is not None:
        raise _unreadable(attention, "clips its states")
    if name != "value" and any(hasattr(attention, f"{name}_{suffix}") for suffix in ("norm", "layernorm")):
        raise _unreadable(attention, f"normalises the {name} after the rotary embedding")
    norm = None
    if name == "value" or getattr(attention, "qk_layernorm", True):
        norm = getattr(attention, f"{name[0]}_norm", None) or getattr(attention, f"{name[0]}_layernorm", None)
    if norm is not None and name != "value":
        rotary = min((used.index(other) for other in rotary_names(used)), default=len(used))
        norm_uses = [used.index(n) for n in (f"{name[0]}_norm", f"{name[0]}_layernorm") if n in used]
        after_rotary = name == "query" and any(use > rotary for use in norm_uses)
        if after_rotary and any(True for _ in norm.parameters()):  # weights of the norm do not commute with rotation
            raise _unreadable(attention, f"normalises the {name} after the rotary embedding")
    if norm is None and name != "value" and isinstance(getattr(attention, "qk_norm", None), nn.Module):
        norm = attention.qk_norm
        if any(True for _ in norm.parameters()):
            raise _unreadable(attention, "has a qk_norm with weights")
    if hasattr(norm, "norms"):
        raise _unreadable(attention, f"has one norm per head of the {name}")
    weight = getattr(norm, "weight", None)
    per_head = weight is None or weight.shape[-1] == head_dim

    def split(states: Tensor) -> Tensor:
        return states.reshape(*states.shape[:-1], -1, head_dim)

    def normalise(states: Tensor) -> Tensor:
        if norm is None:
            return split(states)
        normalised: Tensor = norm(split(states)) if per_head else split(norm(states))
        return normalised

    return normalise


def rotary_names(used: Sequence[str]) -> list[str]:
    """The names used in an attention's forward that apply a rotary embedding."""
    return [name for name in used if name.startswith("apply_") and "rot" in name]


def rotation(attention: Any) -> Rotate:
    """The rotary embedding that an attention module applies, for one tensor ``[batch, heads, rows, head_dim]``.

    Returns:
        ``rotate(states, cos, sin)``.

    Raises:
        UnsupportedModelError: Single attention rows cannot be computed as the module computes them.
    """
    used = names_used(attention)
    names = rotary_names(used)
    unsupported = {
        name
        for name in UNSUPPORTED_NAMES & set(used)
        if not any(getattr(attention, name, True) is off for off in (None, False))
    }
    if "get_llama_4_attn_scale" in used and _rope_parameters(attention).get("llama_4_scaling_beta"):
        unsupported.add("queries scaled by their position")
    if unsupported or len(names) != 1 or "qk_norm" in used:
        raise _no_rows(attention, ", ".join(sorted(unsupported)) or f"rotary functions: {', '.join(names) or 'none'}")
    function = getattr(sys.modules[type(attention).__module__], names[0], None)
    arguments = list(inspect.signature(function).parameters) if function is not None else []
    if not _is_rotary(attention, used[: used.index(names[0])]):
        return lambda states, cos, sin: states
    if arguments[:4] == ["q", "k", "cos", "sin"]:
        pair: Any = function
        return _partial(lambda states, cos, sin: pair(states, states, cos, sin)[0])
    if arguments[1:3] == ["cos", "sin"]:
        single: Any = function
        return _partial(lambda states, cos, sin: single(states, cos, sin))
    raise _no_rows(attention, f"{names[0]}({', '.join(arguments)})")


def _is_rotary(attention: Any, before: Sequence[str]) -> bool:
    """Whether this layer rotates at all: some families leave it out in some layers.

    Args:
        attention: The attention module.
        before: Names that its forward uses before the rotary embedding.
    """
    if "use_rope" in before:
        return bool(attention.use_rope)
    if "is_sliding" in before:  # Exaone 4: full layers of a mixed stack have no positions
        return attention.sliding_window is None or bool(attention.is_sliding)
    if "sliding_window" in before:  # Cohere 2: full layers have no positions
        return attention.sliding_window is not None
    return True


def _partial(rotate: Rotate) -> Rotate:
    """Rotate as many features of a head as there are angles, and leave the rest."""

    def apply(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        width = cos.shape[-1]
        if width >= states.shape[-1]:
            return rotate(states, cos, sin)
        return torch.cat([rotate(states[..., :width], cos, sin), states[..., width:]], dim=-1)

    return apply


def _rope_parameters(attention: Any) -> dict[str, Any]:
    return getattr(getattr(attention, "config", None), "rope_parameters", None) or {}


def _unreadable(attention: nn.Module, what: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{type(attention).__name__} {what}",
        "use a scorer that reads hidden states, or write an adapter whose stack_class overrides projections()",
    )


def _no_rows(attention: nn.Module, why: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{type(attention).__name__}: cannot compute single attention rows ({why})",
        "use a method that needs no attention rows (scorers matrix_entropy, random, norm), or write an adapter whose"
        " stack_class overrides rotary()",
    )
