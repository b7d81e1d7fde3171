"""Image features shared by all series of a batch, so that the vision tower runs once per batch."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils import ModelOutput

from tokenprune.core.call_arguments import bound_arguments
from tokenprune.engine.hooks import PatchedMethod


class SharedFeatures:
    """Caches the image features of the last pixels that a model encoded.

    Equal pixels give equal features, so a method that reads only the language model gets the same answer from the
    cached ones. A model without ``get_image_features`` (transformers' name for tower and projector) is not changed.

    Args:
        model: The model whose features are cached.
    """

    def __init__(self, model: nn.Module) -> None:
        self.inner: Any = getattr(model, "base_model", model)
        self._last: tuple[Tensor, dict[str, Any], Any] | None = None  # pixels, options, features

    @contextmanager
    def enabled(self) -> Iterator[None]:
        """Reuse the features of equal pixels inside the block. On exit the model is as it was before."""
        patched = PatchedMethod(self.inner, "get_image_features", self._remember)
        try:
            yield
        finally:
            patched.remove()

    def _remember(self, own: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        arguments = bound_arguments(own, args, kwargs)
        pixels = arguments.pop("pixel_values", None)
        if pixels is None or any(isinstance(value, Tensor) for value in arguments.values()):
            return own(*args, **kwargs)  # grids and sizes change the features, too
        if self._last is not None and self._last[1] == arguments and torch.equal(self._last[0], pixels):
            return fresh(self._last[2])
        features = own(*args, **kwargs)
        self._last = (pixels, arguments, fresh(features))
        return features


def fresh(features: Any) -> Any:
    """The same tensors in new containers: a beam search puts the features of its beams into the ones that it gets."""
    if isinstance(features, ModelOutput):
        made = copy.copy(features)
        for name, value in vars(features).items():  # also what is no field: before 5.23 some models add pooler_output
            setattr(made, name, fresh(value))
        return made
    if type(features) in (list, tuple):
        return type(features)(fresh(value) for value in features)
    return features
