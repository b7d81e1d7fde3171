"""Published architectures without their weights, for counting operations and for timing with random weights.

Times and FLOPs do not depend on the values of the weights. The numbers are those of the published ``config.json``
files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tokenprune.core.registry import suggest
from tokenprune.errors import ConfigError

if TYPE_CHECKING:  # the command line names the presets in its help, and importing torch takes seconds
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel

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
        text_tokens: Text tokens of the prompt.
        images: Number of images.
    """

    text_tokens: int = 60
    images: int = 1


@dataclass(frozen=True)
class Preset:
    """A published architecture.

    Attributes:
        name: The name on the command line.
        description: One line.
        numbers: The fields of its ``config.json``.
        picture: Makes the inputs of one image: ``picture(config) -> (number of visual tokens, tensors)``.
    """

    name: str
    description: str
    numbers: Mapping[str, Any]
    picture: Callable[[Any], tuple[int, dict[str, Tensor]]]

    def config(self) -> Any:
        """A new transformers config."""
        from transformers import AutoConfig

        numbers = dict(self.numbers)
        return AutoConfig.for_model(numbers.pop("model_type"), **numbers)

    @property
    def visual_tokens(self) -> int:
        """Visual tokens of each image that :meth:`inputs` makes."""
        return self.picture(self.config())[0]

    def build(
        self,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
        attention: str = "sdpa",
        seed: int = 0,
    ) -> PreTrainedModel:
        """The model in evaluation mode with random weights (none on the device ``meta``), in float32 by default."""
        import torch
        from transformers import AutoModelForImageTextToText

        dtype = torch.float32 if dtype is None else dtype
        # on the target device, so that 14 GB of weights do not pass through the host
        with torch.random.fork_rng(), torch.device(device):
            torch.manual_seed(seed)
            model = AutoModelForImageTextToText.from_config(self.config(), dtype=dtype, attn_implementation=attention)
        return model.eval()

    def inputs(
        self,
        requests: Sequence[Request],
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
        seed: int = 0,
    ) -> dict[str, Tensor]:
        """A left-padded batch of prompts with random text and noise as images.

        Args:
            requests: One per sample.
            device: Device of the tensors.
            dtype: Precision of the pixels; float32 if None.
            seed: Seed of text and pixels.
        """
        import torch

        config, generator = self.config(), torch.Generator().manual_seed(seed)
        visual, image_inputs = self.picture(config)
        image_id = getattr(config, "image_token_id", None) or config.image_token_index
        width = max(request.text_tokens + visual * request.images for request in requests)
        ids = torch.randint(100, 30000, (len(requests), width), generator=generator)
        mask = torch.ones_like(ids)
        for sample, request in enumerate(requests):
            start = width - request.text_tokens - visual * request.images
            mask[sample, :start] = 0
            first = start + min(request.text_tokens - 1, 8)  # some text precedes the images, as in chat templates
            ids[sample, first : first + visual * request.images] = image_id
        images = sum(request.images for request in requests)
        tensors = {name: torch.cat([value] * images) for name, value in image_inputs.items()}
        if "pixel_values" in tensors:
            noise = torch.randn(tensors["pixel_values"].shape, generator=generator)
            tensors["pixel_values"] = noise if dtype is None else noise.to(dtype)
        if config.model_type.startswith("qwen"):
            tensors["mm_token_type_ids"] = (ids == image_id).long()
        batch = {"input_ids": ids, "attention_mask": mask, **tensors}
        return {name: value.to(device) for name, value in batch.items()}


def _square(config: Any) -> tuple[int, dict[str, Tensor]]:
    """LLaVA: one image of the tower's input size."""
    import torch

    size = config.vision_config.image_size
    count = (size // config.vision_config.patch_size) ** 2
    return count, {"pixel_values": torch.empty(1, 3, size, size)}


def _tiles(config: Any) -> tuple[int, dict[str, Tensor]]:
    """LLaVA-NeXT: a square image as 2 x 2 tiles and an overview. A newline token follows every row of the tiles."""
    import torch

    size = config.vision_config.image_size
    side = size // config.vision_config.patch_size
    count = side * side + 2 * side * (2 * side + 1)
    return count, {"pixel_values": torch.empty(1, 5, 3, size, size), "image_sizes": torch.tensor([[2 * size] * 2])}


def _patches(config: Any) -> tuple[int, dict[str, Tensor]]:
    """Qwen2.5-VL: 1008 x 1008 pixels, 36 x 36 visual tokens."""
    import torch

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
    """The preset with the given name.

    Raises:
        ConfigError: There is no such preset.
    """
    if name not in PRESETS:
        raise ConfigError(f"unknown preset {name!r}", suggest(name, PRESETS))
    return PRESETS[name]
