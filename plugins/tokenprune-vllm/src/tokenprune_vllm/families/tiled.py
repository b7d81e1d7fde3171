"""Gemma 3 and InternVL: pictures of several tiles, which follow each other in one tensor of pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import nn
from vllm.model_executor.models.gemma3_mm import Gemma3ForConditionalGeneration
from vllm.model_executor.models.interns1 import InternS1ForConditionalGeneration

from tokenprune.authoring import Modality
from tokenprune_vllm.model import OnePosition, served


class Tiled(OnePosition):
    """Pictures of several tiles, and videos.

    Attributes:
        tiles: The arguments that hold the number of tiles of every picture, or of frames of every video.
    """

    tiles: ClassVar[tuple[str, ...]]
    vision_tower: Any

    def call(self, batch: Mapping[str, Any], index: int, kind: Modality) -> dict[str, Any]:
        """See :meth:`Served.call`. Frames are pictures to transformers."""
        pixels = batch["pixel_values_videos" if kind == "video" else "pixel_values"]
        return {"pixel_values": pixels[self.tower_rows(batch, index)]}

    def tower_rows(self, batch: Mapping[str, Any], index: int) -> slice:
        """See :meth:`Served.tower_rows`: tiles, or frames."""
        (name,) = (name for name in self.tiles if name in batch)
        counts = batch[name].flatten().tolist()
        return slice(sum(counts[:index]), sum(counts[: index + 1]))


@served
class Gemma3(Tiled, Gemma3ForConditionalGeneration):  # type: ignore[misc]
    """Gemma 3: a tower of SigLIP, whose patches are pooled; the picture and its crops."""

    tiles = ("num_patches",)

    def tower_layer(self, layer: int) -> tuple[nn.Module, Sequence[nn.Module]]:
        """See :meth:`Served.tower_layer`."""
        block = self.vision_tower.vision_model.encoder.layers[layer]
        return block, [block.self_attn.qkv_proj]


@served
class InternVL(Tiled, InternS1ForConditionalGeneration):  # type: ignore[misc]
    """InternVL, in the form that transformers has: patches are merged by shuffled pixels.

    Text stands before every frame of a video, and a frame is an image.
    """

    tiles = ("image_num_patches", "video_num_patches")

    def tower_layer(self, layer: int) -> tuple[nn.Module, Sequence[nn.Module]]:
        """See :meth:`Served.tower_layer`."""
        block = self.vision_tower.encoder.layer[layer]
        names = ("q_norm", "k_norm") if block.attention.qk_normalization else ("q_proj", "k_proj")
        return block, [getattr(block.attention, name) for name in (*names, "v_proj")]
