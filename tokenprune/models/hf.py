"""Any multimodal checkpoint that the auto classes of transformers can load."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from tokenprune.errors import MissingDataError, UnsupportedModelError
from tokenprune.models.base import LoadedModel, ModelSpec
from tokenprune.tasks.base import Sample


class HuggingFace(ModelSpec):
    """A checkpoint from a folder or the hub.

    Attributes:
        checkpoint: A local folder, or a hub name (found in the local hub cache, or downloaded).
        revision: Branch, tag or commit of the checkpoint on the hub.
        dtype: Precision of the weights; ``auto`` is that of the checkpoint.
        device: Where the model runs; ``auto`` is the first CUDA device if there is one, else the CPU.
        device_map: Passed to ``from_pretrained`` in place of ``device``; needs accelerate.
        attention: The attention implementation.
        trust_remote_code: Run code that the checkpoint brings along.
        system: A system prompt.
        instruction: Appended to every question, so that answers are short.
    """

    checkpoint: str
    revision: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device: str = "auto"
    device_map: str | None = None
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    trust_remote_code: bool = False
    system: str = ""
    instruction: str = "Answer with one word."

    def load(self) -> LoadedModel:
        """Load model and processor.

        Raises:
            MissingDataError: The checkpoint is neither on this machine nor can it be downloaded, or a package that its
                processor needs is missing.
            UnsupportedModelError: The checkpoint is damaged, or it is no model for images and text.
        """
        dtype = self.dtype if self.dtype == "auto" else getattr(torch, self.dtype)
        options = {"revision": self.revision, "trust_remote_code": self.trust_remote_code}
        placement = {} if self.device_map is None else {"device_map": self.device_map}
        with self._explained():
            processor = AutoProcessor.from_pretrained(self.checkpoint, **options)
            model = AutoModelForImageTextToText.from_pretrained(
                self.checkpoint, dtype=dtype, attn_implementation=self.attention, **options, **placement
            ).eval()
            if self.device_map is None:
                model = model.to(self.place())
        if not hasattr(processor, "tokenizer"):
            raise UnsupportedModelError(
                f"checkpoint {self.checkpoint!r} has no processor for images and text", "use a multimodal checkpoint"
            )
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
            batch.pop("labels", None)  # of PaliGemma: a prefill would compute a loss
            return {
                key: value.to(model.dtype) if torch.is_floating_point(value) else value for key, value in batch.items()
            }

        return LoadedModel(model, processor, name, encode)

    def place(self) -> torch.device:
        """The device that ``device`` names."""
        if self.device != "auto":
            return torch.device(self.device)
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """One line for whatever transformers raises while it loads a checkpoint."""
        try:
            yield
        except ImportError as error:
            raise MissingDataError(
                f"checkpoint {self.checkpoint!r} needs a package that is not installed ({one_line(error)})",
                "install it; the processors of Qwen-VL need torchvision",
            ) from error
        except OSError as error:  # a missing folder, a missing repository, a missing network
            raise MissingDataError(
                f"checkpoint {self.checkpoint!r} cannot be loaded ({one_line(error)})",
                "give a local folder, or download the checkpoint first with `hf download`",
            ) from error
        except Exception as error:  # safetensors, tokenizers and torch have errors of their own
            raise UnsupportedModelError(
                f"checkpoint {self.checkpoint!r} cannot be loaded ({type(error).__name__}: {one_line(error)})",
                "check that it is complete, multimodal, and made for this version of transformers",
            ) from error

    def chat(self, sample: Sample) -> list[dict[str, Any]]:
        """A sample as a conversation with one turn: its images and videos, then its question and the instruction."""
        content: list[dict[str, Any]] = [{"type": "image", "image": image} for image in sample.images]
        content += [{"type": "video", "video": video.frames} for video in sample.videos]
        content.append({"type": "text", "text": f"{sample.question} {self.instruction}".strip()})
        system = [{"role": "system", "content": [{"type": "text", "text": self.system}]}] if self.system else []
        return [*system, {"role": "user", "content": content}]


def one_line(error: Exception, width: int = 200) -> str:
    """The text of an error on one line, cut to ``width`` characters."""
    text = " ".join(str(error).split())
    return text if len(text) <= width else text[: width - 3] + "..."
