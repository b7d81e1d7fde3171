"""The models that a name stands for, the same for every command."""

from pathlib import Path
from typing import Annotated, Any

from tokenprune.config import Config
from tokenprune.core.component import FromRegistry
from tokenprune.core.plugins import registry
from tokenprune.core.registry import suggest
from tokenprune.errors import ConfigError
from tokenprune.models.base import ModelSpec
from tokenprune.models.presets import PRESETS, Preset


class NamedModel(Config):
    """The model of a command, as its options say it.

    Attributes:
        model: The model.
    """

    model: Annotated[ModelSpec, FromRegistry("models")]


def is_registered(name: str) -> bool:
    """Whether a plugin, or tokenprune itself, brings a model of that name."""
    return name in registry("models").names()


def find_preset(name: str) -> Preset | None:
    """The published architecture of that name; None if there is none, or a model or a folder has the name."""
    return None if is_registered(name) or Path(name).is_dir() else PRESETS.get(name)


def is_known(name: str) -> bool:
    """Whether a name stands for a model, as far as this machine knows; names with an owner may be on the hub."""
    return bool(name) and (is_registered(name) or name in PRESETS or "/" in name or Path(name).exists())


def model_entry(name: str, settings: dict[str, Any] | None = None, **checkpoint: Any) -> dict[str, Any]:
    """The entry of a config for a model with weights.

    Args:
        name: A registered model, or a checkpoint's folder or hub name.
        settings: Fields of the model that the user stated; those that are None are left out.
        checkpoint: Further fields for a checkpoint.

    Raises:
        ConfigError: The name is that of a published architecture, which has no weights, or of nothing.
    """
    stated = {field: value for field, value in (settings or {}).items() if value is not None}
    if find_preset(name) is not None:
        raise ConfigError(
            f"{name!r} is an architecture without weights, for `bench` and `flops`",
            "give a checkpoint's folder or hub name (owner/name)",
        )
    if not is_known(name):
        names = [*registry("models").names(), *PRESETS]
        raise ConfigError(
            f"unknown model {name!r}", f"{suggest(name, names)}; or give a checkpoint's folder or hub name (owner/name)"
        )
    if is_registered(name):
        return {"name": name, **stated}
    return {"name": "hf", "checkpoint": name, **checkpoint, **stated}


def find_model(name: str, where: str, settings: dict[str, Any] | None = None, **checkpoint: Any) -> ModelSpec:
    """The model with weights that a name stands for; arguments and errors as for :func:`model_entry`.

    Args:
        name: See :func:`model_entry`.
        where: The command, for messages.
        settings: See :func:`model_entry`; a field that the model does not have is an error.
        checkpoint: See :func:`model_entry`.
    """
    return NamedModel.from_dict({"model": model_entry(name, settings, **checkpoint)}, where).model
