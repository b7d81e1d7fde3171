"""InternVL, in the form that transformers has: tiles of one size, each pooled by its shuffled pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from vllm.model_executor.models.interns1 import InternS1ForConditionalGeneration

from tokenprune_vllm.model import OnePosition, served


@served
class InternVL(OnePosition, InternS1ForConditionalGeneration):  # type: ignore[misc]
    """InternVL."""

    vision_tower: Any

    def call(self, batch: Mapping[str, Any], index: int, tokens: int) -> dict[str, Any]:
        """See :meth:`Served.call`."""
        ids = torch.full((1, tokens), self.adapter.visual_ids[0])
        return {"input_ids": ids, "pixel_values": batch["pixel_values"][self.tower_rows(batch, index)]}

    def tower_layer(self, layer: int) -> tuple[nn.Module, Sequence[nn.Module]]:
        """See :meth:`Served.tower_layer`."""
        block = self.vision_tower.encoder.layer[layer]
        names = ("q_norm", "k_norm") if block.attention.qk_normalization else ("q_proj", "k_proj")
        return block, [getattr(block.attention, name) for name in (*names, "v_proj")]

    def tower_rows(self, batch: Mapping[str, Any], index: int) -> slice:
        """See :meth:`Served.tower_rows`: tiles."""
        tiles = batch["image_num_patches"].flatten().tolist()
        return slice(sum(tiles[:index]), sum(tiles[: index + 1]))
