"""Finds the decoder and the visual token ids of a usual transformers model, and refuses unusual ones."""

from typing import Any

import torch
from torch import Tensor, nn

from tokenprune.errors import UnsupportedModelError

#: Config attributes that hold the id of a token which stands for visual features.
VISUAL_ID_NAMES = ("image_token_id", "image_token_index", "video_token_id", "video_token_index")

#: Names under which a model keeps its decoder, in the order tried.
INNER_NAMES = ("model", "language_model", "decoder")


def check_config(model: nn.Module) -> Any:
    """The config of a decoder-only transformers model.

    Raises:
        UnsupportedModelError: The model has no transformers config, or an encoder reads the prompt for the decoder.
    """
    config: Any = getattr(model, "config", None)
    if config is None or not hasattr(config, "get_text_config"):
        raise UnsupportedModelError(f"{type(model).__name__} is not a transformers model", "pass a PreTrainedModel")
    base = getattr(model, "base_model", None)
    both = all(isinstance(getattr(base, name, None), nn.Module) for name in ("encoder", "decoder"))  # DiffusionGemma
    if both or getattr(config, "is_encoder_decoder", False):
        raise UnsupportedModelError(
            f"{type(model).__name__} is an encoder-decoder model", "only decoder-only models can be pruned"
        )
    return config


def find_decoder(model: Any) -> nn.Module:
    """The module whose ``layers`` are the decoder layers.

    Raises:
        UnsupportedModelError: Neither ``get_decoder()`` nor ``language_model`` leads to one.
    """
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else None
    for candidate in (decoder, getattr(model, "language_model", None)):
        while candidate is not None:
            if isinstance(candidate, nn.Module) and isinstance(getattr(candidate, "layers", None), nn.ModuleList):
                return candidate
            inner = next(filter(None, (getattr(candidate, name, None) for name in INNER_NAMES)), None)
            candidate = inner if inner is not candidate else None
    raise UnsupportedModelError(
        f"{type(model).__name__}: model.get_decoder() and model.language_model lead to no module with a list of layers",
        "write an adapter that overrides find_decoder()",
    )


def generates(model: nn.Module) -> bool:
    """Whether a model has ``generate``: it is made to continue a prompt, and reads the last rows of its logits."""
    return callable(getattr(model, "generate", None))


def check_head(model: nn.Module, decoder: nn.Module) -> None:
    """Refuse models that neither generate nor are a base model: classifiers, rewards, retrieval.

    Their heads pick rows of the hidden states by positions of the prompt, and a pruned model has fewer rows.

    Args:
        model: The model, without its wrappers.
        decoder: The module that holds its decoder layers.

    Raises:
        UnsupportedModelError: The model puts a head of its own on a model of images and text.
    """
    inner = None if generates(model) else _model_inside(model, decoder)
    if inner is not None:
        raise head_error(model, type(inner).__name__)


def head_error(model: nn.Module, inner: str) -> UnsupportedModelError:
    """The error for a model that puts a head of its own on ``inner``."""
    return UnsupportedModelError(
        f"{type(model).__name__} puts a head on {inner}, which picks rows by their position in the unpruned prompt",
        f"apply the method to {inner}, call that, and put the head on the rows that you want"
        " (run.stages[-1].rows holds their positions)",
    )


def _model_inside(model: Any, decoder: nn.Module) -> nn.Module | None:
    """The model of images and text that a model is built around; None for a base model, which is one itself."""
    base = getattr(model, "base_model", model)
    if base is not model:
        found: nn.Module = base
        return found
    # a head whose class does not say where its base model is (base_model_prefix)
    inside = (part for part in model.modules() if part is not model and hasattr(part, "get_image_features"))
    return next((part for part in inside if any(module is decoder for module in part.modules())), None)


def find_visual_ids(config: Any, text_config: Any) -> tuple[int, ...]:
    """Ids of the tokens that stand for visual features, sorted; empty where the config names none.

    Args:
        config: The model's config; its nested configs are searched when it names none itself.
        text_config: The language model's config.
    """
    nested = [value for value in vars(config).values() if hasattr(value, "to_dict")]
    for configs in ((config, text_config), nested):
        ids = {getattr(one, name, None) for one in configs for name in VISUAL_ID_NAMES}
        visual_ids = tuple(sorted(i for i in ids if isinstance(i, int) and i >= 0))
        if visual_ids:
            return visual_ids
    return ()


def find_picture_ids(model: nn.Module, config: Any) -> Tensor:
    """Ids of the tokens that are pieces of pictures themselves, long ``[tokens]``; most models have none.

    Emu3, Chameleon and Apertus 1.5 turn a picture into tokens of their vocabulary, which take the placeholders' places.
    """
    mapping = getattr(getattr(model, "base_model", model), "vocabulary_mapping", None)
    offset = getattr(config, "image_token_offset", None)
    if mapping is not None:
        return torch.tensor(mapping.image_tokens, dtype=torch.long)
    if offset is not None:
        return torch.arange(offset, offset + config.vision_config.codebook_size)
    return torch.empty(0, dtype=torch.long)
