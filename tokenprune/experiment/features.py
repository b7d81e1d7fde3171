"""One run of the vision tower for all series of a batch: an experiment compares what happens behind it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tokenprune.replaced import Replaced


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
        replaced = Replaced(self.inner, "get_image_features", self._remembering)
        try:
            yield
        finally:
            replaced.remove()

    def _remembering(self, compute: Callable[..., Any]) -> Callable[..., Any]:
        def get_image_features(pixel_values: Tensor, **options: Any) -> Any:
            if any(isinstance(value, Tensor) for value in options.values()):
                return compute(pixel_values=pixel_values, **options)  # grids and sizes belong to the pixels
            if self.known is not None and self.known[1] == options and torch.equal(self.known[0], pixel_values):
                return self.known[2]
            found = compute(pixel_values=pixel_values, **options)
            self.known = (pixel_values, options, found)
            return found

        return get_image_features
