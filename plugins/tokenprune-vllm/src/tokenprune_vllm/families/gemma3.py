"""Gemma 3: a tower of SigLIP, whose patches are pooled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from vllm.model_executor.models.gemma3_mm import Gemma3ForConditionalGeneration

from tokenprune_vllm.model import OnePosition, served


@served
class Gemma3(OnePosition, Gemma3ForConditionalGeneration):  # type: ignore[misc]
    """Gemma 3."""

    vision_tower: Any

    def call(self, batch: Mapping[str, Any], index: int, tokens: int) -> dict[str, Any]:
        """See :meth:`Served.call`."""
        ids = torch.full((1, tokens), self.adapter.visual_ids[0])
        return {"input_ids": ids, "pixel_values": batch["pixel_values"][self.tower_rows(batch, index)]}

    def tower_layer(self, layer: int) -> tuple[nn.Module, Sequence[nn.Module]]:
        """See :meth:`Served.tower_layer`."""
        block = self.vision_tower.vision_model.encoder.layers[layer]
        return block, [block.self_attn.qkv_proj]

    def tower_rows(self, batch: Mapping[str, Any], index: int) -> slice:
        """See :meth:`Served.tower_rows`: the picture and its crops."""
        tiles = batch["num_patches"].flatten().tolist()
        return slice(sum(tiles[:index]), sum(tiles[: index + 1]))
