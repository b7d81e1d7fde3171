"""Vision towers: the modules that are observed in a layer, and the patches that become each visual token."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tokenprune.adapters.projections import rotation
from tokenprune.errors import LayerError, UnsupportedFeatureError, UnsupportedModelError
from tokenprune.ops.vision import TowerLayer, cell_patches

Arguments = Mapping[str, Any]

#: Names of the parameter that holds a tower's class token.
CLASS_TOKEN_NAMES = ("class_embedding", "cls_token")


@dataclass(frozen=True)
class TowerRun:
    """One run of the vision tower, as far as it was observed.

    Attributes:
        arguments: The tower's arguments without pixels, and those of its encoder that
            :attr:`tokenprune.adapters.base.Adapter.encoders` names.
        states: (layer, ``query``, ``key`` or ``value``) -> the output of that module; (layer, ``output``) -> the states
            that left the layer; (layer, ``rotary``) -> the cosines and sines that the attention was given, or None.
    """

    arguments: Arguments
    states: dict[tuple[int, str], Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TowerSite:
    """One layer of a vision tower: the modules that are observed, and the reading of their outputs.

    Attributes:
        tower: The tower; it runs once for all images, and once for all videos.
        block: The layer; its output is observed.
        attention: The layer's attention module; its argument ``position_embeddings`` is observed.
        query: The module in it that makes the queries; its output is observed.
        key: The module that makes the keys; it may be the same.
        value: The module that makes the values; it may be that of the queries, and then the last third of its output
            holds the values. Only observed for components that declare ``tower_value``. None where the tower has none.
        read: Makes the layer's states from the outputs of the two modules, the cosines and sines of the rotary
            embedding (or None), and the run's arguments (see :class:`TowerRun`).
        has_class_token: Whether the tower has a class token that is no visual token.
    """

    tower: nn.Module
    block: nn.Module
    attention: nn.Module
    query: nn.Module
    key: nn.Module
    read: Callable[[Tensor, Tensor, Any, Arguments], TowerLayer]
    has_class_token: bool = False
    value: nn.Module | None = None

    def split_value(self, output: Tensor, key: Tensor) -> Tensor:
        """The value states in the output of :attr:`value`, ``[images, tokens, heads, head_dim]`` as the keys."""
        if self.value is self.query:
            output = output.chunk(3, dim=-1)[2]
        return output.reshape(*key.shape[:-1], -1)


@dataclass(frozen=True)
class PackedPatches:
    """The patches of a tower that gets all images as one row: its attention blocks, and the patches of each feature.

    Attributes:
        blocks: See :class:`tokenprune.ops.vision.TowerLayer`.
        feature_patches: The patches of each feature, in the order in which features enter the prompt, on the host.
    """

    blocks: Sequence[tuple[int, int]]
    feature_patches: Tensor


def find_tower(model: Any, *names: str) -> nn.Module | None:
    """The vision tower of a model: the first of the named attributes that its inner model has."""
    inner = getattr(model, "model", model)
    return next((tower for name in names if isinstance(tower := getattr(inner, name, None), nn.Module)), None)


def find_tower_layer(tower: Any, layer: int) -> tuple[Any, Any]:
    """A layer of a tower and its attention module; (None, None) where the tower is not built in a known way.

    Raises:
        LayerError: The tower has no such layer.
    """
    inner = getattr(tower, "vision_model", tower)
    inner = getattr(inner, "encoder", None) or getattr(inner, "transformer", None) or inner
    lists = (getattr(inner, name, None) for name in ("layers", "layer", "blocks"))
    layers: Any = next((modules for modules in lists if modules), ())
    name = next((name for name in ("self_attn", "attention", "attn") if layers and hasattr(layers[0], name)), None)
    if name is None:
        return None, None
    if not -len(layers) <= layer < len(layers):
        raise LayerError(
            f"layer {layer} of a vision tower of {len(layers)} layers", f"use {-len(layers)} to {len(layers) - 1}"
        )
    return layers[layer], getattr(layers[layer], name)


def patch_projector(model: Any, tower: Any, layer: int) -> nn.Module | None:
    """The module ``multi_modal_projector``, if the states of this layer of the tower are all that it gets."""
    source = getattr(model.config, "vision_feature_layer", None)
    if not isinstance(source, int) or source >= -1:  # several layers; counted from the embeddings; behind a norm
        return None
    block, _ = find_tower_layer(tower, layer)
    if block is None or find_tower_layer(tower, source)[0] is not block:
        return None
    projector = getattr(getattr(model, "model", model), "multi_modal_projector", None)
    return projector if isinstance(projector, nn.Module) else None


def image_batch_site(
    tower: nn.Module | None,
    layer: int,
    class_tokens: int,
    merge_side: Callable[[int], int] | None = None,
    unpadded: Callable[[Arguments], Tensor | None] | None = None,
) -> TowerSite | None:
    """A tower that gets a batch of images, without rotary embedding, with separate query and key projections.

    Args:
        tower: The tower.
        layer: Layer of it.
        class_tokens: Tokens in front that are not patches.
        merge_side: Gives the patches on a side of the square that becomes one token, from the patches on a side of the
            image; None where every patch is a token.
        unpadded: Gives the tokens that are not padding, bool ``[images, tokens]``, from the tower's arguments.

    Returns:
        None where the tower is not built in that way.
    """
    block, attention = find_tower_layer(tower, layer)
    if tower is None or not hasattr(attention, "q_proj"):
        return None
    scaling = float(getattr(attention, "scaling", None) or attention.scale)

    def read(query: Tensor, key: Tensor, rotary: Any, arguments: Arguments) -> TowerLayer:
        query, key = (states.unflatten(-1, (-1, int(attention.head_dim))) for states in (query, key))
        images, patches = key.shape[0], key.shape[1] - class_tokens
        feature_patches = None
        if merge_side is not None:
            side = math.isqrt(patches)
            one_image = cell_patches(side, side, merge_side(side)).to(key.device)
            first_patch = patches * torch.arange(images, device=key.device)
            feature_patches = (one_image + first_patch[:, None, None]).flatten(0, 1)
        mask = unpadded(arguments) if unpadded else None
        features = patches if feature_patches is None else len(feature_patches) // max(images, 1)
        tiles = torch.arange(images).repeat_interleave(features)
        return TowerLayer(
            query, key, class_tokens, scaling, unpadded=mask, feature_patches=feature_patches, tiles=tiles
        )

    # InternVL normalises queries and keys; without weights for it, the module is there, too, and does nothing
    query, key = (getattr(attention, f"{name}_norm", None) or getattr(attention, f"{name}_proj") for name in "qk")
    value = getattr(attention, "v_proj", None)
    return TowerSite(tower, block, attention, query, key, read, class_tokens > 0 and has_class_token(tower), value)


def has_class_token(tower: nn.Module) -> bool:
    """Whether a tower has a learned token that stands for the whole image."""
    names = (name.rpartition(".")[2] for name, _ in tower.named_parameters())
    return any(name in CLASS_TOKEN_NAMES for name in names)


def packed_site(tower: nn.Module | None, layer: int, pack: Callable[[Arguments], PackedPatches]) -> TowerSite | None:
    """A tower with rotary embedding that gets all images as one row of patches.

    Args:
        tower: The tower.
        layer: Layer of it.
        pack: Gives the blocks and the merging of the patches from the tower's arguments.

    Returns:
        None where the tower is not built in that way.
    """
    block, attention = find_tower_layer(tower, layer)
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
            class_tokens=0,
            scaling=float(attention.scaling),
            blocks=packed.blocks,
            feature_patches=packed.feature_patches.to(key.device),
            plain_key=key,
            plain_query=query,
        )

    query, key = (fused, fused) if fused is not None else (attention.q_proj, attention.k_proj)
    value = fused if fused is not None else getattr(attention, "v_proj", None)
    return TowerSite(tower, block, attention, query, key, read, value=value)


def pixtral_site(tower: Any, layer: int, side: int) -> TowerSite | None:
    """Pixtral's tower, whose images differ in size.

    Args:
        tower: The tower.
        layer: Layer of it.
        side: Patches on a side of the square that becomes one token.

    Returns:
        None where the tower is not built in that way.
    """

    def pack(arguments: Arguments) -> PackedPatches:
        image_sizes = arguments.get("image_sizes")
        if image_sizes is None:
            raise UnsupportedFeatureError(
                "the vision tower was given no image_sizes",
                "pass image_sizes to the model, as the processor returns them",
            )
        grids = torch.as_tensor(image_sizes).cpu() // int(tower.patch_size)
        feature_patches, blocks, before = [], [], 0
        for rows, columns in grids.tolist():
            feature_patches.append(cell_patches(rows, columns, side) + before)
            blocks.append((rows * columns, rows * columns))
            before += rows * columns
        return PackedPatches(blocks, torch.cat(feature_patches))

    return packed_site(tower, layer, pack)
