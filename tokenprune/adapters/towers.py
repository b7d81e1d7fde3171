"""Vision towers: where a layer's attention is, and which patches become which visual token."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tokenprune.adapters.base import VisionAttention
from tokenprune.adapters.signals import rotation
from tokenprune.errors import LayerError, UnsupportedFeatureError, UnsupportedModelError
from tokenprune.ops.vision import TowerLayer, cells

Arguments = Mapping[str, Any]


def tower_of(model: Any, *names: str) -> nn.Module | None:
    """The vision tower of a model: the first of some attributes that its inner model has."""
    inner = getattr(model, "model", model)
    return next((tower for name in names if isinstance(tower := getattr(inner, name, None), nn.Module)), None)


def attention_of(tower: Any, layer: int) -> Any:
    """The attention module of a layer of a tower; None where the tower is not built in a way that is known.

    Raises:
        LayerError: The tower has no such layer.
    """
    inner = getattr(tower, "vision_model", tower)
    inner = getattr(inner, "encoder", None) or getattr(inner, "transformer", None) or inner
    layers: Any = next((found for name in ("layers", "layer", "blocks") if (found := getattr(inner, name, None))), ())
    name = next((name for name in ("self_attn", "attention", "attn") if layers and hasattr(layers[0], name)), None)
    if name is None:
        return None
    if not -len(layers) <= layer < len(layers):
        raise LayerError(
            f"layer {layer} of a vision tower of {len(layers)} layers", f"use {-len(layers)} to {len(layers) - 1}"
        )
    return getattr(layers[layer], name)


def separate_images(
    tower: nn.Module | None,
    layer: int,
    classes: int,
    merged: Callable[[int], int] | None = None,
    seen: Callable[[Arguments], Tensor | None] | None = None,
) -> VisionAttention | None:
    """A tower without rotary embedding that gets images one by one, with a projection each for queries and keys.

    Args:
        tower: The tower.
        layer: Layer of it.
        classes: Tokens in front that stand for no patch.
        merged: Patches on a side of the square that becomes one token, given the patches on a side of the image; None
            where every patch is a token.
        seen: Patches that are no padding, bool ``[images, patches]``, from the tower's arguments.

    Returns:
        None where the tower is not built in that way.
    """
    attention = attention_of(tower, layer)
    if tower is None or not hasattr(attention, "q_proj"):
        return None
    scaling = float(getattr(attention, "scaling", None) or attention.scale)

    def read(query: Tensor, key: Tensor, rotary: Any, arguments: Arguments) -> TowerLayer:
        query, key = (states.unflatten(-1, (-1, int(attention.head_dim))) for states in (query, key))
        images, patches = key.shape[0], key.shape[1] - classes
        found = None
        if merged is not None:
            side = math.isqrt(patches)
            first = cells(side, side, merged(side)).to(key.device)
            found = (first + patches * torch.arange(images, device=key.device)[:, None, None]).flatten(0, 1)
        return TowerLayer(query, key, classes, scaling, seen=seen(arguments) if seen else None, cells=found)

    # InternVL normalises queries and keys; without weights for it, the module is there, too, and does nothing
    query, key = (getattr(attention, f"{name}_norm", None) or getattr(attention, f"{name}_proj") for name in "qk")
    return VisionAttention(tower, attention, query, key, read)


@dataclass(frozen=True)
class Packed:
    """How a tower that gets all images as one row of patches looks at them.

    Attributes:
        blocks: See :class:`tokenprune.ops.vision.TowerLayer`.
        cells: The patches of each feature, in the order in which features enter the prompt, on the host.
    """

    blocks: Sequence[tuple[int, int]]
    cells: Tensor


def packed_images(tower: nn.Module | None, layer: int, pack: Callable[[Arguments], Packed]) -> VisionAttention | None:
    """A tower with rotary embedding that gets all images as one row of patches.

    Args:
        tower: The tower.
        layer: Layer of it.
        pack: Tells from the tower's arguments how patches see each other and are merged.

    Returns:
        None where the tower is not built in that way.
    """
    attention = attention_of(tower, layer)
    fused = getattr(attention, "qkv", None)
    if tower is None or (fused is None and not hasattr(attention, "q_proj")):
        return None
    rotate = rotation(attention)

    def read(query: Tensor, key: Tensor, rotary: Any, arguments: Arguments) -> TowerLayer:
        if fused is not None:
            query, key, _ = query.chunk(3, dim=-1)
        query, key = (states.reshape(1, states.shape[-2], -1, int(attention.head_dim)) for states in (query, key))
        packed = pack(arguments)
        if rotary is None:
            raise UnsupportedModelError(
                f"{type(attention).__name__} was given no position_embeddings",
                "use a method that does not read the vision tower",
            )
        return TowerLayer(
            query=rotate(query[0], *rotary)[None],
            key=rotate(key[0], *rotary)[None],
            classes=0,
            scaling=float(attention.scaling),
            blocks=packed.blocks,
            cells=packed.cells.to(key.device),
            plain_key=key,
        )

    query, key = (fused, fused) if fused is not None else (attention.q_proj, attention.k_proj)
    return VisionAttention(tower, attention, query, key, read)


def packed_pixtral(tower: Any, layer: int, side: int) -> VisionAttention | None:
    """Pixtral's tower, whose images differ in size.

    Args:
        tower: The tower.
        layer: Layer of it.
        side: Patches on a side of the square that becomes one token.

    Returns:
        None where the tower is not built in that way.
    """

    def pack(arguments: Arguments) -> Packed:
        given = arguments.get("image_sizes")
        if given is None:
            raise UnsupportedFeatureError(
                "the vision tower was given no image_sizes", "give them as the processor does"
            )
        sizes = torch.as_tensor(given).cpu() // int(tower.patch_size)
        found, blocks, before = [], [], 0
        for rows, columns in sizes.tolist():
            found.append(cells(rows, columns, side) + before)
            blocks.append((rows * columns, rows * columns))
            before += rows * columns
        return Packed(blocks, torch.cat(found))

    return packed_images(tower, layer, pack)
