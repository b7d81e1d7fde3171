"""Which of its methods a call of the model uses: that of the innermost ``using`` block around it, or the run's own.

The blocks belong to a context (:mod:`contextvars`): to a thread, to a task of asyncio, and to what runs in a copy of
their context, as ``asyncio.to_thread`` does. Methods prune at different layers, and share the hooks on these.
"""

from collections.abc import Callable
from contextvars import ContextVar, Token
from typing import Any, Generic, TypeVar

from tokenprune.engine.hooks import Removable, SharedHooks
from tokenprune.errors import UnsupportedFeatureError


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


T = TypeVar("T")


class Use(Generic[T]):
    """One ``using`` block.

    It holds nothing of the model once it has ended: copies of its context may live longer.

    Args:
        model: Stands for the applied model.
        method: What the calls inside the block use.

    Attributes:
        model: As given.
        called: Whether a call of the model began inside the block.
        moved: Whether it ended in another context than it began in, as a generator does that several threads or tasks
            advance. It does not count as open anywhere then.
    """

    def __init__(self, model: object, method: T) -> None:
        self.model = model
        self.called = self.moved = False
        self._method: T | None = method
        self._began: Token[None] | None = _BEGAN.set(None)

    @property
    def method(self) -> T:
        """What the calls inside the block use.

        Raises:
            UnsupportedFeatureError: The block has ended; a task or a thread goes on in a copy of its context.
        """
        if self._method is None:
            raise UnsupportedFeatureError(
                "the using block of this call has ended: the call runs in a task or a thread that began inside the"
                " block and outlived it",
                "wait for it inside the block, or open the block in the task or thread itself",
            )
        return self._method

    def end(self) -> None:
        """End the block, in all contexts."""
        self._method = None
        began, self._began = self._began, None
        if began is not None:
            try:
                _BEGAN.reset(began)
            except ValueError:
                self.moved = True


#: Tells contexts apart: what a block set where it began can be taken back there only.
_BEGAN: ContextVar[None] = ContextVar("tokenprune_began", default=None)

#: The blocks that are open in this context, the innermost last.
_OPEN: ContextVar[tuple[Use[Any], ...]] = ContextVar("tokenprune_using", default=())

#: Returns them. Where there are none, nothing else is asked: it runs at every step.
opened = _OPEN.get


def begin(use: Use[Any]) -> None:
    """Open a block in this context."""
    _OPEN.set((*(other for other in opened() if not other.moved), use))


def end(use: Use[Any]) -> None:
    """End a block."""
    use.end()
    _OPEN.set(tuple(other for other in opened() if other is not use))


def around(model: object) -> list[Use[Any]]:
    """The blocks of this context for an applied model, the innermost last."""
    return [use for use in opened() if use.model is model and not use.moved]
