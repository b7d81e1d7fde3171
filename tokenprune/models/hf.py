"""Any multimodal checkpoint that the auto classes of transformers can load."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from tokenprune.errors import MissingDataError
from tokenprune.models.base import LoadedModel, ModelSpec
from tokenprune.tasks.base import Sample


class HuggingFace(ModelSpec):
    """A checkpoint from a folder or the hub.

    Attributes:
        checkpoint: A local folder, or a hub name (found in the local hub cache, or downloaded).
        dtype: Precision of the weights; ``auto`` is that of the checkpoint.
        device_map: Passed to ``from_pretrained``; needs accelerate.
        attention: The attention implementation.
        instruction: Appended to every question, so that answers are short.
    """

    checkpoint: str
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device_map: str | None = None
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    instruction: str = "Answer with one word."

    def load(self) -> LoadedModel:
        """Load model and processor.

        Raises:
            MissingDataError: The checkpoint is neither on this machine nor can it be downloaded.
        """
        dtype = self.dtype if self.dtype == "auto" else getattr(torch, self.dtype)
        placement = {} if self.device_map is None else {"device_map": self.device_map}
        try:
            processor = AutoProcessor.from_pretrained(self.checkpoint)
            model = AutoModelForImageTextToText.from_pretrained(
                self.checkpoint, dtype=dtype, attn_implementation=self.attention, **placement
            ).eval()
        except (
            OSError
        ) as error:  # transformers raises it for a missing folder, a missing repository and a missing network
            raise MissingDataError(
                f"checkpoint {self.checkpoint!r} cannot be loaded",
                "give a local folder, or download the checkpoint first with `hf download`",
            ) from error
        processor.tokenizer.padding_side = "left"
        name = self.checkpoint.rstrip("/").rsplit("/", 1)[-1]

        def encode(samples: Sequence[Sample]) -> dict[str, torch.Tensor]:
            batch = processor.apply_chat_template(
                [self.chat(sample) for sample in samples],
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
                processor_kwargs={"padding": True},
            ).to(model.device)
            return {
                key: value.to(model.dtype) if torch.is_floating_point(value) else value for key, value in batch.items()
            }

        return LoadedModel(model, processor, name, encode)

    def chat(self, sample: Sample) -> list[dict[str, Any]]:
        """A sample as a conversation with one turn: its images, then its question and the instruction."""
        content: list[dict[str, Any]] = [{"type": "image", "image": image} for image in sample.images]
        content.append({"type": "text", "text": f"{sample.question} {self.instruction}"})
        return [{"role": "user", "content": content}]
