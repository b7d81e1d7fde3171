"""Decode steps on a static cache, as Dynamo traces them: one graph, in which nothing of the engine is asked.

A graph that transformers or the user compiles holds a whole decode step. The engine runs eagerly around calls of the
model, so a traced step passes it over. All that a step on a pruned static cache needs is in the cache: each layer cuts
the mask to its keys. Dynamo guards on what is read here, among it the owner of the cache: a graph is not used for the
cache of another block, or after the block.
"""

from collections.abc import Mapping
from typing import Any

import torch
from transformers.cache_utils import StaticCache

from tokenprune.adapters.layer_signature import LayerSignature
from tokenprune.core.call_arguments import CACHE_NAMES
from tokenprune.engine.renumber import Rotation
from tokenprune.ops.rows import is_visible

#: An attribute of a static cache on which a call was interrupted.
_INTERRUPTED = "tokenprune_interrupted"


class Graphs:
    """Tells which calls of a model and its modules may be compiled, and what a layer gets in them.

    Args:
        thread: The calls that the engine follows, as owners of caches know them.
        names: Names of a decoder layer's arguments.
        last: Number of the last layer: whatever was dropped is missing in its cache, too.
    """

    def __init__(self, thread: Any, names: LayerSignature, last: int) -> None:
        self._thread, self._names, self._last = thread, names, last

    def holds(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
        """Whether a call is a decode step that a graph may hold.

        Args:
            args: Positional arguments of the model, its inner model, its decoder or a layer.
            kwargs: Its keyword arguments.
        """
        cache = _cache(kwargs)
        if not isinstance(cache, StaticCache):
            return False
        brought = args[0] if args else kwargs.get("input_ids")
        if brought is None:
            brought = kwargs.get("inputs_embeds")
        if not isinstance(brought, torch.Tensor) or brought.dim() < 2 or brought.shape[1] != 1:
            return False
        last: Any = cache.layers[self._last]
        return bool(last.is_initialized) and not hasattr(cache, _INTERRUPTED) and self._follows(last)

    def _follows(self, layer: Any) -> bool:
        """Whether a layer is whole, or was pruned here and has no window that may be passed."""
        if not hasattr(layer, "rows"):
            return True
        owner = layer.rows.owner
        if layer.rows.following is not None and owner.window is not None and layer.full_length > owner.window:
            return False
        return owner.thread is self._thread

    def before_layer(self, layer: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What a layer gets in a step that a graph holds: new (args, kwargs), or None to leave them."""
        held: Any = _cache(kwargs).layers[layer]
        if not hasattr(held, "rows"):
            return None
        held.mask_is_cut = True
        mask = kwargs.get(self._names.attention_mask)
        given = {**kwargs, self._names.attention_mask: held.step_mask(mask, 1, False)}
        if held.rows.following is not None:
            self._renumber(given, held, mask, held.rows.owner.rotations[layer])
        return args, given

    def _renumber(self, given: dict[str, Any], held: Any, mask: Any, rotations: Mapping[str, Rotation]) -> None:
        """Move the positions among a layer's arguments; what moves them is a tensor, so that prompts share a graph."""
        length = held.get_seq_length()
        behind = length - held.prompt_length
        if mask is not None:
            later = torch.arange(mask.shape[-1], device=mask.device) >= held.prompt_length
            behind = (is_visible(mask[:, 0, -1]) & later).sum(1) - 1  # padding between turns does not count
        following = held.rows.following
        positions = (following + behind)[:, None]
        stays = (following < 0)[:, None]
        for name, rotation in rotations.items():
            given[name] = _where(stays[..., None], given[name], rotation.at(positions))
        ids = given.get(self._names.position_ids)
        if isinstance(ids, torch.Tensor):
            given[self._names.position_ids] = torch.where(stays, ids, positions)


def _where(stays: torch.Tensor, old: Any, new: Any) -> Any:
    """``old`` for some samples and ``new`` for the others, in tensors or tuples of them."""
    if isinstance(old, torch.Tensor):
        return torch.where(stays, old, new)
    return type(old)(_where(stays, one, other) for one, other in zip(old, new, strict=True))


def mark_interrupted(cache: Any, interrupted: bool = True) -> None:
    """Note that a call on a cache was interrupted; or, if not ``interrupted``, that one has ended well.

    The layers may differ in length then. An eager step compares them, and a graph does not.

    Args:
        cache: The cache of the call; nothing is noted where it is not static.
        interrupted: Whether the call was interrupted.
    """
    if not isinstance(cache, StaticCache):
        return
    if interrupted:
        setattr(cache, _INTERRUPTED, True)
    elif hasattr(cache, _INTERRUPTED):
        delattr(cache, _INTERRUPTED)


def _cache(kwargs: Mapping[str, Any]) -> Any:
    for name in CACHE_NAMES:
        cache = kwargs.get(name)
        if cache is not None:
            return cache
    return None
