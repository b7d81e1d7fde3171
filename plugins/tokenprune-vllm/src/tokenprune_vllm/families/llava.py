"""LLaVA-1.5, LLaVA-NeXT and LLaVA-OneVision: one position per token, a tower that gets images or tiles of one size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from vllm.model_executor.models.llava import LlavaForConditionalGeneration
from vllm.model_executor.models.llava_next import LlavaNextForConditionalGeneration
from vllm.model_executor.models.llava_onevision import LlavaOnevisionForConditionalGeneration

from tokenprune_vllm.model import OnePosition, served


class ImageTower(OnePosition):
    """A tower of CLIP or SigLIP."""

    vision_tower: Any

    def call(self, batch: Mapping[str, Any], index: int, tokens: int) -> dict[str, Any]:
        """See :meth:`Served.call`."""
        ids = torch.full((1, tokens), self.adapter.visual_ids[0])
        return {"input_ids": ids, "pixel_values": batch["pixel_values"][index][None]}

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

    def call(self, batch: Mapping[str, Any], index: int, tokens: int) -> dict[str, Any]:
        """See :meth:`Served.call`."""
        return {**super().call(batch, index, tokens), "image_sizes": batch["image_sizes"][index][None]}

    def tower_call(self, call: Mapping[str, Any]) -> Mapping[str, Any]:
        """See :meth:`Served.tower_call`. The adapter takes pixels for a video."""
        return {"image_sizes": call["image_sizes"]}

    def tower_rows(self, batch: Mapping[str, Any], index: int) -> slice:
        """See :meth:`Served.tower_rows`."""
        tiles = [len(picture) for picture in batch["pixel_values"]]
        return slice(sum(tiles[:index]), sum(tiles[: index + 1]))


@served
class LlavaNext(Tiles, LlavaNextForConditionalGeneration):  # type: ignore[misc]
    """LLaVA-NeXT."""


@served
class LlavaOnevision(Tiles, LlavaOnevisionForConditionalGeneration):  # type: ignore[misc]
    """LLaVA-OneVision: large pictures are scaled down; a picture alone in its prompt has tiles, others have not."""
