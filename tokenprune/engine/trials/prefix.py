"""The layers before the first pruned one, run once for all methods that are compared on a batch."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from tokenprune.engine import hooks


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
        patches = [hooks.PatchedMethod(layer, "forward", lambda own, args, kwargs: _copy(output)) for layer in skipped]
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
