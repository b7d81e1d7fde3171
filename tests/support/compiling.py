"""Ways to compile a model: each gives what ``apply`` is given, and what is called."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel

BACKEND = "eager"  # Dynamo traces and guards; nothing is lowered, so that results are bitwise equal


def wrapped_whole(model: PreTrainedModel) -> tuple[Any, Any]:
    """`torch.compile(model, fullgraph=True)`: what cannot be one graph is an error."""
    compiled = torch.compile(model, backend=BACKEND, fullgraph=True)
    return compiled, compiled


def wrapped(model: PreTrainedModel) -> tuple[Any, Any]:
    """`torch.compile(model)`."""
    compiled = torch.compile(model, backend=BACKEND)
    return compiled, compiled


def in_place(model: PreTrainedModel) -> tuple[Any, Any]:
    """`model.compile()`."""
    model.compile(backend=BACKEND)
    return model, model


def language_model(model: PreTrainedModel) -> tuple[Any, Any]:
    """The language model is wrapped."""
    model.model.language_model = torch.compile(model.model.language_model, backend=BACKEND)
    return model, model


def language_model_in_place(model: PreTrainedModel) -> tuple[Any, Any]:
    """The language model is compiled in place."""
    model.model.language_model.compile(backend=BACKEND)
    return model, model


def forward(model: PreTrainedModel) -> tuple[Any, Any]:
    """The forward of the model."""
    model.forward = torch.compile(model.forward, backend=BACKEND)
    return model, model


def decoder_forward(model: PreTrainedModel) -> tuple[Any, Any]:
    """The forward of the language model."""
    model.model.language_model.forward = torch.compile(model.model.language_model.forward, backend=BACKEND)
    return model, model


def every_layer(model: PreTrainedModel) -> tuple[Any, Any]:
    """Each decoder layer in place."""
    for layer in model.model.language_model.layers:
        layer.compile(backend=BACKEND)
    return model, model


def every_layer_wrapped(model: PreTrainedModel) -> tuple[Any, Any]:
    """Each decoder layer is wrapped."""
    layers = model.model.language_model.layers
    for number, layer in enumerate(layers):
        layers[number] = torch.compile(layer, backend=BACKEND)
    return model, model
