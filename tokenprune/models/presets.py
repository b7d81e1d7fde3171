"""Published architectures without their weights: to count operations on, or to time with random weights.

Time and FLOPs do not depend on what the weights are. The numbers are those of the published ``config.json`` files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedModel

from tokenprune.errors import ConfigError
from tokenprune.registry import suggest

_CLIP_L = {
    "model_type": "clip_vision_model",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
}
_VICUNA_7B = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "vocab_size": 32064,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
}
_VICUNA_13B = _VICUNA_7B | {
    "hidden_size": 5120,
    "intermediate_size": 13824,
    "num_hidden_layers": 40,
    "num_attention_heads": 40,
}
_QWEN2_HALF_B = {
    "model_type": "qwen2",
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "vocab_size": 152000,
    "tie_word_embeddings": True,
}
_LLAVA = {"model_type": "llava", "vision_config": _CLIP_L, "image_token_index": 32000, "image_seq_length": 576}
_QWEN_VL_7B = {
    "model_type": "qwen2_5_vl",
    "image_token_id": 151655,
    "video_token_id": 151656,
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
    "tie_word_embeddings": False,
    "text_config": {
        "model_type": "qwen2_5_vl_text",
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
        "max_position_embeddings": 128000,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
    },
    "vision_config": {
        "depth": 32,
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "out_hidden_size": 3584,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "window_size": 112,
        "fullatt_block_indexes": [7, 15, 23, 31],
        "tokens_per_second": 2,
    },
}


@dataclass(frozen=True)
class Request:
    """One prompt of a batch.

    Attributes:
        text_tokens: Tokens of the prompt that are not visual.
        images: Images in front of the text.
    """

    text_tokens: int = 60
    images: int = 1


@dataclass(frozen=True)
class Preset:
    """A published architecture.

    Attributes:
        name: What the command line calls it.
        description: One line.
        numbers: What its ``config.json`` says.
        picture: Makes the features' inputs of one image: ``picture(config) -> (visual tokens, tensors)``.
    """

    name: str
    description: str
    numbers: Mapping[str, Any]
    picture: Callable[[Any], tuple[int, dict[str, Tensor]]]

    def config(self) -> Any:
        """The transformers config, a fresh one."""
        numbers = dict(self.numbers)
        return AutoConfig.for_model(numbers.pop("model_type"), **numbers)

    @property
    def visual_tokens(self) -> int:
        """Visual tokens of the picture that :meth:`inputs` uses."""
        return self.picture(self.config())[0]

    def build(
        self,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        attention: str = "sdpa",
        seed: int = 0,
    ) -> PreTrainedModel:
        """The model with random weights (without any, on the device ``meta``), in evaluation mode."""
        # made where it will be: 14 GB of weights never pass through the host
        with torch.random.fork_rng(), torch.device(device):
            torch.manual_seed(seed)
            model = AutoModelForImageTextToText.from_config(self.config(), dtype=dtype, attn_implementation=attention)
        return model.eval()

    def inputs(
        self,
        requests: Sequence[Request],
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
    ) -> dict[str, Tensor]:
        """A left-padded batch of prompts with random text and noise for images.

        Args:
            requests: One per sample.
            device: Where the tensors go.
            dtype: Precision of the pixels.
            seed: Of text and pixels.
        """
        config, generator = self.config(), torch.Generator().manual_seed(seed)
        visual, one = self.picture(config)
        image_id = getattr(config, "image_token_id", None) or config.image_token_index
        width = max(request.text_tokens + visual * request.images for request in requests)
        ids = torch.randint(100, 30000, (len(requests), width), generator=generator)
        mask = torch.ones_like(ids)
        for sample, request in enumerate(requests):
            start = width - request.text_tokens - visual * request.images
            mask[sample, :start] = 0
            before = start + min(request.text_tokens - 1, 8)  # some text in front, as chat templates have it
            ids[sample, before : before + visual * request.images] = image_id
        tensors = {
            name: torch.cat([value] * sum(request.images for request in requests)) for name, value in one.items()
        }
        if "pixel_values" in tensors:
            noise = torch.randn(tensors["pixel_values"].shape, generator=generator)
            tensors["pixel_values"] = noise.to(dtype)
        if config.model_type.startswith("qwen"):
            tensors["mm_token_type_ids"] = (ids == image_id).long()
        made = {"input_ids": ids, "attention_mask": mask, **tensors}
        return {name: value.to(device) for name, value in made.items()}


def _square(config: Any) -> tuple[int, dict[str, Tensor]]:
    """LLaVA: one image of the tower's size."""
    size = config.vision_config.image_size
    count = (size // config.vision_config.patch_size) ** 2
    return count, {"pixel_values": torch.empty(1, 3, size, size)}


def _tiles(config: Any) -> tuple[int, dict[str, Tensor]]:
    """LLaVA-NeXT: a square image of 2 x 2 tiles and the overview; a newline token ends every row of the tiles."""
    size = config.vision_config.image_size
    side = size // config.vision_config.patch_size
    count = side * side + 2 * side * (2 * side + 1)
    return count, {"pixel_values": torch.empty(1, 5, 3, size, size), "image_sizes": torch.tensor([[2 * size] * 2])}


def _patches(config: Any) -> tuple[int, dict[str, Tensor]]:
    """Qwen2.5-VL: 1008 x 1008 pixels, 36 x 36 visual tokens."""
    vision = config.vision_config
    side = 36 * vision.spatial_merge_size
    values = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    grid = torch.tensor([[1, side, side]])
    return 36 * 36, {"pixel_values": torch.empty(side * side, values), "image_grid_thw": grid}


_PINPOINTS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]

PRESETS: Mapping[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset(
            "llava-0.5b",
            "LLaVA-1.5's recipe (CLIP ViT-L/14-336, two-layer projector) around Qwen2-0.5B: small enough for a CPU",
            _LLAVA | {"text_config": _QWEN2_HALF_B, "image_token_index": 151646, "tie_word_embeddings": True},
            _square,
        ),
        Preset("llava-1.5-7b", "CLIP ViT-L/14-336 and Vicuna-7B", _LLAVA | {"text_config": _VICUNA_7B}, _square),
        Preset("llava-1.5-13b", "CLIP ViT-L/14-336 and Vicuna-13B", _LLAVA | {"text_config": _VICUNA_13B}, _square),
        Preset(
            "llava-next-7b",
            "LLaVA-NeXT (1.6) around Vicuna-7B, images in tiles",
            _LLAVA | {"model_type": "llava_next", "image_grid_pinpoints": _PINPOINTS, "text_config": _VICUNA_7B},
            _tiles,
        ),
        Preset("qwen2.5-vl-7b", "Qwen2.5-VL-7B, native resolution", _QWEN_VL_7B, _patches),
    )
}


def preset(name: str) -> Preset:
    """The preset of a name.

    Raises:
        ConfigError: There is none of that name.
    """
    if name not in PRESETS:
        raise ConfigError(f"unknown preset {name!r}", suggest(name, PRESETS))
    return PRESETS[name]
