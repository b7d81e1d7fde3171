"""Image features shared by all series of a batch, so that the vision tower runs once per batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tokenprune.replaced import Replaced


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
        replaced = Replaced(self.inner, "get_image_features", self._caching)
        try:
            yield
        finally:
            replaced.remove()

    def _caching(self, compute: Callable[..., Any]) -> Callable[..., Any]:
        def get_image_features(pixel_values: Tensor, **options: Any) -> Any:
            if any(isinstance(value, Tensor) for value in options.values()):
                return compute(pixel_values=pixel_values, **options)  # grids and sizes change the features, too
            if self._last is not None and self._last[1] == options and torch.equal(self._last[0], pixel_values):
                return self._last[2]
            features = compute(pixel_values=pixel_values, **options)
            self._last = (pixel_values, options, features)
            return features

        return get_image_features
