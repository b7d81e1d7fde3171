"""Hooks on the decoder layers from some layer on: methods prune at different layers, and share them."""

from __future__ import annotations

from collections.abc import Callable

from tokenprune.engine.hooks import Removable, SharedHooks


class LayerHooks(SharedHooks):
    """Hooks on the decoder layers, from the lowest that any method in use acts at.

    A layer has one hook, which asks the call that runs, whatever method that is of.

    Args:
        register: Puts the hook on one layer.
        lowest: Tells the lowest layer that is needed.
        layers: Decoder layers.
        stay: See :class:`SharedHooks`.
    """

    def __init__(
        self, register: Callable[[int], Removable], lowest: Callable[[], int], layers: int, stay: bool = False
    ) -> None:
        super().__init__(self._register_all, stay)
        self._register_one, self._lowest, self._layers = register, lowest, layers
        self._first = layers

    def _register_all(self) -> list[Removable]:
        self._first = self._lowest()
        return [self._register_one(layer) for layer in range(self._first, self._layers)]

    def extend(self) -> None:
        """Hook lower layers, too, if there are hooks on the model and a method that came meanwhile needs them."""
        with self._lock:
            if self._handles:
                first, end = self._lowest(), self._first
                self._handles += [self._register_one(layer) for layer in range(first, end)]
                self._first = min(first, end)
