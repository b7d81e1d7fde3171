"""Any multimodal checkpoint that the auto classes of transformers can load."""

from __future__ import annotations

import difflib
import inspect
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import try_to_load_from_cache
from pydantic import Field, PositiveInt, field_validator, model_validator
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, BitsAndBytesConfig, GenerationConfig

from tokenprune.core.hub import NotOnHubError, ask_hub, is_hub_name
from tokenprune.core.optional import optional
from tokenprune.core.registry import suggest
from tokenprune.errors import MissingDataError, UnsupportedModelError
from tokenprune.models.base import LoadedModel, ModelSpec
from tokenprune.models.chat import ChatEncoder, limit_pixels
from tokenprune.models.device import resolve_device
from tokenprune.models.dtype import Dtype, canonical

PROCESSOR = ("processor_config.json", "preprocessor_config.json")


def has_config(folder: Path) -> bool:
    """Whether a folder has a model's config."""
    return (folder / "config.json").is_file()


def has_all(folder: Path) -> bool:
    """Whether a folder has all that a model is loaded from: config, processor, and the weights that its index names."""
    return has_config(folder) and _has_processor(folder) and _has_weights(folder)


def _has_processor(folder: Path) -> bool:
    return any((folder / name).is_file() for name in PROCESSOR)


def _has_weights(folder: Path) -> bool:
    indices = [*folder.glob("*.safetensors.index.json"), *folder.glob("*.bin.index.json")]
    if not indices:
        return any(folder.glob("*.safetensors")) or any(folder.glob("*.bin"))
    try:
        shards = set(json.loads(indices[0].read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, LookupError, AttributeError, TypeError):  # it is damaged: whoever loads it says so
        return False
    return all((folder / shard).is_file() for shard in shards)


def checkpoint_source(checkpoint: str, revision: str | None, enough: Callable[[Path], bool]) -> str:
    """Find a checkpoint. The hub is asked only for what is neither a folder nor complete in the hub's cache.

    Args:
        checkpoint: A folder, or a name on the hub.
        revision: Branch, tag or commit on the hub.
        enough: Whether the files of a folder are all that is needed: :func:`has_config` or :func:`has_all`.

    Returns:
        The folder, or the name for transformers to download.

    Raises:
        MissingDataError: There is no such folder and no such name on the hub, or the hub cannot be asked.
    """
    folder = Path(checkpoint).expanduser()
    if folder.is_dir():
        return str(folder)
    if folder.is_file():
        raise _missing(checkpoint, "it is a file", "give the folder that holds it")
    if not is_hub_name(checkpoint):
        raise _missing(checkpoint, "there is no such folder", "check the path")
    config = try_to_load_from_cache(checkpoint, "config.json", revision=revision)
    cached = Path(config).parent if isinstance(config, str) else None
    if cached is not None and enough(cached):
        return str(cached)  # by its name, transformers would ask the hub for an adapter, whatever it is told
    try:
        silent = ask_hub(checkpoint, "model", revision)
    except NotOnHubError as error:
        fix = "check the name; private ones need `hf auth login`"
        raise _missing(checkpoint, f"there is no such folder, and {error}", fix) from None
    if silent is None:
        return checkpoint
    if cached is not None:  # perhaps it has what this model needs
        return str(cached)
    raise _missing(
        checkpoint,
        f"there is no such folder, the hub's cache does not have it, and {silent}",
        "give a local folder, or download the checkpoint first with `hf download`",
    )


def check_processor(checkpoint: str) -> None:
    """Check that a folder with a model has a processor, too.

    Raises:
        MissingDataError: It has none.
    """
    folder = Path(checkpoint).expanduser()
    if has_config(folder) and not _has_processor(folder):
        raise MissingDataError(
            f"checkpoint {checkpoint!r} cannot be loaded: it has no processor (neither {' nor '.join(PROCESSOR)})",
            "copy it and the tokenizer's files into the folder, or save the processor there",
        )


def _missing(checkpoint: str, why: str, fix: str) -> MissingDataError:
    """The error for a checkpoint that cannot be found; it names folders with similar names."""
    folder = Path(checkpoint).expanduser()
    there = [path.name for path in folder.parent.glob("*/")] if folder.parent.is_dir() else []
    near = difflib.get_close_matches(folder.name, there, n=1)
    hint = f"; did you mean {str(folder.with_name(near[0]))!r}?" if near else ""
    return MissingDataError(f"checkpoint {checkpoint!r} cannot be loaded: {why}", f"{fix}{hint}")


#: Settings of ``generate`` that the experiment decides.
RESERVED = ("max_new_tokens", "max_length", "num_return_sequences", "return_dict_in_generate")


class HuggingFace(ModelSpec):
    """A checkpoint from a folder or the hub.

    Attributes:
        checkpoint: A local folder, or a hub name (found in the local hub cache, or downloaded).
        revision: Branch, tag or commit of the checkpoint on the hub.
        dtype: Precision of the weights: ``float32``, ``bfloat16`` or ``float16``, or by another name, e.g. ``bf16``;
            ``auto`` is that of the checkpoint.
        device: Where the model runs; ``auto`` is the first CUDA device if there is one, else the CPU.
        device_map: Passed to ``from_pretrained`` in place of ``device``; needs accelerate.
        attention: The attention implementation.
        quantization: Settings of transformers' ``BitsAndBytesConfig``, e.g. ``{load_in_4bit: true}``; needs
            bitsandbytes.
        trust_remote_code: Run code that the checkpoint brings along.
        system: A system prompt.
        instruction: Appended to every question, so that answers are short.
        chat_template: A Jinja template that replaces the checkpoint's own.
        min_pixels: The fewest pixels of a resized image, for families that resize to a number of pixels.
        max_pixels: The most pixels of a resized image, for the same families.
        generation: Settings passed to ``generate``, e.g. ``{num_beams: 3}``. Without them answers are greedy.
    """

    checkpoint: str
    revision: str | None = None
    dtype: Dtype = "auto"
    device: str = "auto"
    device_map: str | None = None
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    quantization: dict[str, Any] | None = None
    trust_remote_code: bool = False
    system: str = ""
    instruction: str = "Answer with one word."
    chat_template: str | None = None
    min_pixels: PositiveInt | None = None
    max_pixels: PositiveInt | None = None
    generation: dict[str, Any] = Field(default_factory=dict)

    @field_validator("quantization")
    @classmethod
    def _known_quantization(cls, settings: dict[str, Any] | None) -> dict[str, Any] | None:
        if settings is not None:
            settings = {name: canonical(value) if name.endswith("dtype") else value for name, value in settings.items()}
            known(settings, [name for name in inspect.signature(BitsAndBytesConfig).parameters if name != "kwargs"])
            try:
                BitsAndBytesConfig(**settings)
            except (TypeError, ValueError, AttributeError) as error:
                raise ValueError(f"transformers refuses it: {one_line(error)}") from error
            if not (settings.get("load_in_4bit") or settings.get("load_in_8bit")):
                raise ValueError("nothing is quantized: set load_in_4bit or load_in_8bit to true")
        return settings

    @field_validator("generation")
    @classmethod
    def _known_generation(cls, settings: dict[str, Any]) -> dict[str, Any]:
        for name in settings:
            if name in RESERVED or name.startswith("output_"):
                raise ValueError(
                    f"{name!r} is decided by the experiment: remove it (its max_new_tokens sets the length)"
                )
        known(settings, [name for name in GenerationConfig().to_dict() if not name.startswith(("_", "transformers"))])
        return settings

    @model_validator(mode="after")
    def _ordered(self) -> HuggingFace:
        if self.min_pixels is not None and self.max_pixels is not None and self.min_pixels > self.max_pixels:
            raise ValueError(f"min_pixels {self.min_pixels} is more than max_pixels {self.max_pixels}: lower it")
        return self

    def read_config(self) -> Any:
        """The checkpoint's config.

        Raises:
            MissingDataError: The checkpoint is neither on this machine nor can it be downloaded.
            UnsupportedModelError: It has no usable config.
        """
        source = checkpoint_source(self.checkpoint, self.revision, has_config)
        with self._explained():
            return AutoConfig.from_pretrained(source, revision=self.revision, trust_remote_code=self.trust_remote_code)

    def load(self) -> LoadedModel:
        """Load model and processor.

        Raises:
            ConfigError: There is no such device.
            MissingDataError: The checkpoint is neither on this machine nor can it be downloaded, or a package that it
                needs is missing.
            UnsupportedModelError: The checkpoint is damaged, it is no model for images and text, or it does not have
                what an option changes.
        """
        check_processor(self.checkpoint)
        device = resolve_device(self.device)
        placement = self._placement(device)
        source = checkpoint_source(self.checkpoint, self.revision, has_all)
        options = {"revision": self.revision, "trust_remote_code": self.trust_remote_code}
        with self._explained():
            processor = AutoProcessor.from_pretrained(source, **options)
        if not hasattr(processor, "tokenizer"):
            raise UnsupportedModelError(
                f"checkpoint {self.checkpoint!r} has no processor for images and text", "use a multimodal checkpoint"
            )
        limit_pixels(processor, self.checkpoint, self.min_pixels, self.max_pixels)
        dtype = self.dtype if self.dtype == "auto" else getattr(torch, self.dtype)
        with self._explained():
            model = AutoModelForImageTextToText.from_pretrained(
                source, dtype=dtype, attn_implementation=self.attention, **options, **placement
            ).eval()
            if "device_map" not in placement:
                model = model.to(device)
        processor.tokenizer.padding_side = "left"
        name = self.checkpoint.rstrip("/").rsplit("/", 1)[-1]
        encoder = ChatEncoder(processor, model, name, self.system, self.instruction, self.chat_template)
        return LoadedModel(model, processor, name, encoder, generation=dict(self.generation))

    def _placement(self, device: torch.device) -> dict[str, Any]:
        """Options of ``from_pretrained``: where the weights go, and how they are quantized."""
        placement: dict[str, Any] = {} if self.device_map is None else {"device_map": self.device_map}
        if self.quantization is not None:
            optional("bitsandbytes", "quantization", "quantization")
            placement.setdefault("device_map", {"": device})  # quantized weights do not move
            placement["quantization_config"] = BitsAndBytesConfig(**self.quantization)
        return placement

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """One line for whatever transformers raises while it loads a checkpoint."""
        try:
            yield
        except ImportError as error:
            raise MissingDataError(
                f"checkpoint {self.checkpoint!r} needs a package that is not installed ({one_line(error)})",
                "install it; processors like those of Qwen-VL need torchvision: pip install 'tokenprune-mllm[qwen]'",
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


def known(settings: Mapping[str, Any], names: list[str]) -> None:
    """Check the keys of a mapping.

    Raises:
        ValueError: One of them is not among the names.
    """
    for name in settings:
        if name not in names:
            raise ValueError(f"unknown key {name!r}; {suggest(name, names).replace('installed', 'allowed')}")


def one_line(error: Exception, width: int = 200) -> str:
    """The text of an error on one line, cut to ``width`` characters."""
    text = " ".join(str(error).split())
    return text if len(text) <= width else text[: width - 3] + "..."
