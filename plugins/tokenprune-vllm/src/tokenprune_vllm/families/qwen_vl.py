"""Qwen2-VL, Qwen2.5-VL, Qwen3-VL: positions of time, row and column, a tower that gets all items as one row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from vllm.model_executor.models.qwen2_5_vl import Qwen2_5_VLForConditionalGeneration
from vllm.model_executor.models.qwen2_vl import Qwen2VLForConditionalGeneration
from vllm.model_executor.models.qwen3_vl import Qwen3VLForConditionalGeneration

from tokenprune.authoring import Modality
from tokenprune_vllm.model import Seen, Served, served


class Grid(Served):
    """Time, row and column as positions; the item begins behind the token before it."""

    visual: Any

    def _size(self, data: Mapping[str, Any]) -> tuple[int, int, int]:
        """Frames, rows and columns of tokens."""
        merge = int(self.config.vision_config.spatial_merge_size)
        frames, height, width = _grid(data).flatten().tolist()
        return frames, height // merge, width // merge

    def call(self, batch: Mapping[str, Any], index: int, kind: Modality) -> dict[str, Any]:
        """See :meth:`Served.call`."""
        names = [name for name in (f"{kind}_grid_thw", "second_per_grid_ts") if name in batch]
        return {name: batch[name][index][None].cpu() for name in names}

    def tower_call(self, call: Mapping[str, Any]) -> Mapping[str, Any]:
        """See :meth:`Served.tower_call`."""
        return {"grid_thw": _grid(call)}

    def places(self, call: Mapping[str, Any], tokens: int) -> Tensor:
        """See :meth:`Served.places`. Rows and columns of one frame, or of all; Qwen2.5-VL spaces frames by time."""
        _, rows, columns = self._size(call)
        places = torch.cartesian_prod(*map(torch.arange, (tokens // (rows * columns), rows, columns))).view(-1, 3).T
        seconds = call.get("second_per_grid_ts")
        if seconds is not None:
            interval = self.config.vision_config.tokens_per_second * seconds.flatten()[0]
            places = torch.stack([(places[0] * interval).long(), *places[1:]])
        return places

    def span(self, data: Mapping[str, Any], tokens: int) -> int:
        """See :meth:`Served.span`. The time axis does not count: text behind a video may stand before its end."""
        return max(self._size(data)[1:])

    def starts(self, positions: Tensor, media: Tensor) -> Tensor:
        """See :meth:`Served.starts`. A token that opens the item stands before every one."""
        order = torch.arange(len(media), device=media.device)
        before = torch.where(media, -1, order).cummax(0).values
        return positions[0, before.clamp(min=0)] + 1

    def position(self, start: Tensor, places: Tensor) -> Tensor:
        """See :meth:`Served.position`."""
        return start + places

    def tower_layer(self, layer: int) -> tuple[nn.Module, Sequence[nn.Module]]:
        """See :meth:`Served.tower_layer`."""
        block = self.visual.blocks[layer]
        return block, [block.attn.qkv]

    def tower_states(self, outputs: Sequence[Tensor]) -> Sequence[Tensor]:
        """See :meth:`Served.tower_states`. The adapter divides queries, keys and values itself."""
        fused = outputs[0].flatten(0, -2)
        return [fused, fused, fused.chunk(3, dim=-1)[2]]

    def tower_rows(self, batch: Mapping[str, Any], index: int) -> slice:
        """See :meth:`Served.tower_rows`: patches."""
        sizes = _grid(batch).prod(-1).tolist()
        return slice(sum(sizes[:index]), sum(sizes[: index + 1]))

    def tower_rotary(self, seen: Seen, layer: int, rows: slice) -> tuple[Tensor, Tensor]:
        """See :meth:`Served.tower_rotary`. vLLM has half of what transformers has twice."""
        given = seen[layer, "arguments"]
        cos, sin = (given[f"rotary_pos_emb_{name}"][rows] for name in ("cos", "sin"))
        return torch.cat([cos, cos], -1), torch.cat([sin, sin], -1)


def _grid(fields: Mapping[str, Any]) -> Tensor:
    """Frames, rows and columns of the patches of pictures or videos, whichever there are."""
    found: Tensor = fields["video_grid_thw"] if "video_grid_thw" in fields else fields["image_grid_thw"]
    return found


@served
class Qwen2VL(Grid, Qwen2VLForConditionalGeneration):  # type: ignore[misc]
    """Qwen2-VL."""


@served
class Qwen25VL(Grid, Qwen2_5_VLForConditionalGeneration):  # type: ignore[misc]
    """Qwen2.5-VL: a tower with windows."""


@served
class Qwen3VL(Grid, Qwen3VLForConditionalGeneration):  # type: ignore[misc]
    """Qwen3-VL: features of DeepStack are further columns, and a time stands before every frame of a video."""

    @staticmethod
    def text_of_video(info: Any) -> int:
        """See :meth:`Served.text_of_video`. A frame has its time, and a token that opens and one that closes it."""
        videos = info.get_video_processor()
        time = info.get_tokenizer().encode("<9999.9 seconds>", add_special_tokens=False)
        return int(videos.max_frames) // int(videos.temporal_patch_size) * (len(time) + 2)
