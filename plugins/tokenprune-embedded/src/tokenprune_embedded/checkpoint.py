"""The embedded multimodal models: ordinary :class:`transformers.LlavaForConditionalGeneration` with weights of ours.

``digits`` answers questions about a picture: SmolLM2-135M and DINOv2-small joined by a projector and a low-rank
adapter. ``clips`` answers questions about the frames of a clip: the same tower, and a small language model of ours that
reads and speaks through projections of SmolLM2's word embeddings. The parts are put together once, into a cache folder,
and loaded from there like any other checkpoint.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import torch

from tokenprune.errors import ConfigError, MissingDataError
from tokenprune.models import sources
from tokenprune.models.base import LoadedModel, ModelSpec
from tokenprune.tasks.base import Sample

if TYPE_CHECKING:
    from transformers import LlavaForConditionalGeneration, LlavaProcessor, PreTrainedTokenizerBase

LAYOUT = "2"  # raise when the way the cache is put together changes
VISION_LAYERS = 6  # the middle of the tower reads small digits better than its end
PATCH = 14  # pixels, of the tower
IMAGE_TOKEN = "<image>"
# a text token goes first: a language model parks attention on its first token, which pruning must not take away
START = "<|im_start|>"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Build:
    """What sets the embedded models apart.

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
    from transformers import LlavaConfig, LlavaForConditionalGeneration

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
    from safetensors.torch import load_file

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
    from transformers import LlavaProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

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


def fingerprint(build: Build) -> str:
    """What the cache depends on: both wheels, our weights and the layout of the cache."""
    if not build.weights.is_file():
        raise MissingDataError(
            f"the embedded model's own weights are missing ({build.weights.name})", "reinstall tokenprune-mllm"
        )
    facts = "\n".join([LAYOUT, *sources.versions()]).encode()
    return hashlib.sha256(facts + build.weights.read_bytes()).hexdigest()[:16]


def build_embedded(build: Build = DIGITS, cache_dir: Path | None = None) -> Path:
    """The folder of an embedded model's checkpoint, put together first if it is not there yet.

    Args:
        build: Which one.
        cache_dir: Where checkpoints are kept; the user's cache folder by default.

    Raises:
        MissingDataError: One of the two wheels or a reader for it is not installed.
    """
    if cache_dir is None:
        from platformdirs import user_cache_dir

        cache_dir = Path(user_cache_dir("tokenprune"))
    target = cache_dir / f"{build.name}-{fingerprint(build)}"
    if target.is_dir():
        return target
    model = skeleton(build)
    merge(model, build.weights)
    cache_dir.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f"{build.name}-", suffix=".partial", dir=cache_dir))
    try:
        model.save_pretrained(partial)
        processor(build).save_pretrained(partial)
        try:
            os.replace(partial, target)  # atomic: another process sees the whole checkpoint or none
        except OSError:
            if not target.is_dir():  # else another process was faster, with the same result
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


class Digits(ModelSpec):
    """The embedded model: answers one-word questions about small digits and shapes, on any CPU, offline.

    Attributes:
        dtype: Precision of the weights in memory.
        attention: The attention implementation of the language model.
    """

    build: ClassVar[Build] = DIGITS

    dtype: Literal["float32", "bfloat16"] = "float32"
    attention: Literal["sdpa", "eager"] = "sdpa"

    def load(self) -> LoadedModel:
        """Load the model from the cache, building the cache on first use."""
        from transformers import LlavaForConditionalGeneration, LlavaProcessor

        build = self.build
        folder = build_embedded(build)
        model = LlavaForConditionalGeneration.from_pretrained(
            folder, dtype=getattr(torch, self.dtype), attn_implementation=self.attention
        ).eval()
        ready = LlavaProcessor.from_pretrained(folder)
        ready.tokenizer.padding_side = "left"

        def encode(samples: Sequence[Sample]) -> dict[str, torch.Tensor]:
            for sample in samples:
                if len(sample.images) != build.frames:
                    raise ConfigError(
                        f"model {build.name!r} takes {build.frames} pictures; {sample.id!r} has {len(sample.images)}",
                        "use model 'digits' for single pictures and 'clips' for clips",
                    )
            texts = [build.prompt(sample.question) for sample in samples]
            images = [image for sample in samples for image in sample.images]
            batch = ready(images=images, text=texts, padding=True, return_tensors="pt")
            batch["pixel_values"] = batch["pixel_values"].to(model.dtype)
            return {name: tensor.to(model.device) for name, tensor in batch.items()}

        return LoadedModel(model, ready, build.name, encode, build.tokens)


class Clips(Digits):
    """The second embedded model: answers one-word questions about digits that appear and move in eight frames."""

    build: ClassVar[Build] = CLIPS
