"""What all methods on a batch share: image features, and the layers before the first pruned one, each run once."""

import copy
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils import ModelOutput

from tokenprune.core.call_arguments import bound_arguments
from tokenprune.engine import hooks
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

    def _remember(self, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        arguments = bound_arguments(original, args, kwargs)
        pixels = arguments.pop("pixel_values", None)
        if pixels is None or any(isinstance(value, Tensor) for value in arguments.values()):
            return original(*args, **kwargs)  # grids and sizes change the features, too
        if self._last is not None and self._last[1] == arguments and torch.equal(self._last[0], pixels):
            return fresh(self._last[2])
        features = original(*args, **kwargs)
        self._last = (pixels, arguments, fresh(features))
        return features


def fresh(features: Any) -> Any:
    """Copy the containers but not the tensors; beam search overwrites the containers' entries."""
    if isinstance(features, ModelOutput):
        made = copy.copy(features)
        for name, value in vars(features).items():  # also what is no field: before 5.23 some models add pooler_output
            setattr(made, name, fresh(value))
        return made
    if type(features) in (list, tuple):
        return type(features)(fresh(value) for value in features)
    return features


class Prefix:
    """Outputs of decoder layers in an unpruned forward without a cache, given back in later forwards of the batch.

    A method that prunes before layer K observes layer K-1, so the layers up to K-2 do the same as without pruning. What
    layer K-2 returned takes the place of them all. Features that the model adds between layers are added again, because
    the output is kept and not the next layer's input.

    Args:
        layers: The decoder's layers.
    """

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        self._layers = layers
        self._outputs: dict[int, Any] = {}

    @contextmanager
    def recorded(self, firsts: Collection[int]) -> Iterator[None]:
        """Keep what methods that prune before these layers need of the forward inside the block."""

        def keep(number: int) -> hooks.Removable:
            def hook(module: nn.Module, args: Any, output: Any) -> None:
                self._outputs[number] = _copy(output)

            return hooks.after(self._layers[number], hook)

        handles = [keep(first - 2) for first in sorted(set(firsts)) if first >= 2]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def reused(self, first: int) -> Iterator[None]:
        """Skip the layers before ``first - 1`` inside the block, if their outcome was recorded.

        Args:
            first: The first layer that sees fewer tokens.
        """
        output = self._outputs.get(first - 2)
        skipped = self._layers[: first - 1] if output is not None else ()

        def replay(original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            return _copy(output)

        patches = [hooks.PatchedMethod(layer, "forward", replay) for layer in skipped]
        try:
            yield
        finally:
            for patch in reversed(patches):
                patch.remove()


def _copy(output: Any) -> Any:
    """A layer's output whose hidden states nobody else writes to."""
    if isinstance(output, tuple):
        return (_copy(output[0]), *output[1:])
    return output.clone() if isinstance(output, Tensor) else output
