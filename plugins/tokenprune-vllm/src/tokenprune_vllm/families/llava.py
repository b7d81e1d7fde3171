"""LLaVA-1.5, LLaVA-NeXT and LLaVA-OneVision: one position per token, a tower that gets images or tiles of one size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn
from vllm.model_executor.models.llava import LlavaForConditionalGeneration
from vllm.model_executor.models.llava_next import LlavaNextForConditionalGeneration
from vllm.model_executor.models.llava_onevision import LlavaOnevisionForConditionalGeneration

from tokenprune.authoring import Modality
from tokenprune_vllm.model import OnePosition, served


class ImageTower(OnePosition):
    """A tower of CLIP or SigLIP."""

    vision_tower: Any

    def call(self, batch: Mapping[str, Any], index: int, kind: Modality) -> dict[str, Any]:
        """See :meth:`Served.call`."""
        return {"pixel_values": batch["pixel_values"][index][None]}

    def tower_layer(self, layer: int) -> tuple[nn.Module, Sequence[nn.Module]]:
        """See :meth:`Served.tower_layer`. vLLM leaves out the layers behind the one whose features are used."""
        layers = self.vision_tower.vision_model.encoder.layers
        block = layers[layer % int(self.config.vision_config.num_hidden_layers)]
        return block, [block.self_attn.qkv_proj]


@served
class Llava(ImageTower, LlavaForConditionalGeneration):  # type: ignore[misc]
    """LLaVA-1.5."""


class Tiles(ImageTower):
    """An overview and tiles; row ends are features like all others."""

    def call(self, batch: Mapping[str, Any], index: int, kind: Modality) -> dict[str, Any]:
        """See :meth:`Served.call`."""
        if kind == "video":
            return {"pixel_values_videos": batch["pixel_values_videos"][index][None]}
        return {**super().call(batch, index, kind), "image_sizes": batch["image_sizes"][index][None]}

    def tower_call(self, call: Mapping[str, Any]) -> Mapping[str, Any]:
        """See :meth:`Served.tower_call`. The adapter takes the pixels of pictures for a video."""
        return {name: call[name] for name in ("pixel_values_videos", "image_sizes") if name in call}

    def tower_rows(self, batch: Mapping[str, Any], index: int) -> slice:
        """See :meth:`Served.tower_rows`: tiles, or frames."""
        pixels = batch["pixel_values_videos" if "pixel_values_videos" in batch else "pixel_values"]
        tiles = [len(item) for item in pixels]
        return slice(sum(tiles[:index]), sum(tiles[: index + 1]))


@served
class LlavaNext(Tiles, LlavaNextForConditionalGeneration):  # type: ignore[misc]
    """LLaVA-NeXT."""


@served
class LlavaOnevision(Tiles, LlavaOnevisionForConditionalGeneration):  # type: ignore[misc]
    """LLaVA-OneVision.

    Large pictures are scaled down. A picture alone in its prompt has tiles, others have not. The frames of a video are
    pooled, and a newline stands behind them.
    """
