"""One run of the vision tower for all series of a batch: an experiment compares what happens behind it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tokenprune.call_arguments import bound_arguments
from tokenprune.engine.hooks import PatchedMethod


class SharedFeatures:
    """Remembers the image features of the last pixels that a model saw.

    Features of equal pixels are equal, so a method that only reads the language model gets the same answer from them.
    A model without ``get_image_features`` (what Transformers calls the tower and the projector) is left as it is.

    Args:
        model: The model whose features are remembered.
    """

    def __init__(self, model: nn.Module) -> None:
        self.inner: Any = getattr(model, "base_model", model)
        self.known: tuple[Tensor, dict[str, Any], Any] | None = None

    @contextmanager
    def used(self) -> Iterator[None]:
        """Inside the block, equal pixels are not encoded again. The model is itself again on exit."""
        patched = PatchedMethod(self.inner, "get_image_features", self._remember)
        try:
            yield
        finally:
            patched.remove()

    def _remember(self, own: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        arguments = bound_arguments(own, args, kwargs)
        pixels = arguments.pop("pixel_values", None)
        if pixels is None or any(isinstance(value, Tensor) for value in arguments.values()):
            return own(*args, **kwargs)  # grids and sizes belong to the pixels
        if self.known is not None and self.known[1] == arguments and torch.equal(self.known[0], pixels):
            return self.known[2]
        features = own(*args, **kwargs)
        self.known = (pixels, arguments, features)
        return features
