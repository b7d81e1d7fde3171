"""Adapters tell the engine about a model family. They are registered by ``model_type`` as entry points."""

from torch import nn

from tokenprune.adapters.base import Adapter
from tokenprune.core import plugins


def adapter_for(model: nn.Module) -> Adapter:
    """The adapter registered for the model's ``model_type``, else the generic one.

    Raises:
        UnsupportedModelError: The engine cannot find what it needs in the model.
    """
    registry = plugins.registry("adapters")
    family = str(getattr(getattr(model, "config", None), "model_type", ""))
    adapter: Adapter = registry.get(family if family in registry.names() else "generic")(model)
    adapter.name = family or adapter.name
    return adapter
