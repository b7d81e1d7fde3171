"""Everything that is put on a model while a method is applied. The only file that registers hooks or replaces methods.

Two things can be put on a model: forward hooks, and a method replaced on one object. ``remove`` takes each of them off
again. None of them survives a copy of the model: a deep copy or a pickle made inside an ``apply`` block is an ordinary,
unpruned model.
"""

import copy
import functools
import inspect
import threading
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TypeAlias

import torch
from torch import nn

from tokenprune.core.call_arguments import bound_arguments
from tokenprune.errors import UnsupportedFeatureError

#: ``replacement(original, args, kwargs)`` runs in place of a method; ``original`` is the method that was there.
Replacement: TypeAlias = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]

#: ``hook(module, args, kwargs)`` of a module's forward: returns new (args, kwargs), or None to leave them.
BeforeHook: TypeAlias = Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], Any]


class Removable(Protocol):
    """Something on a model that can be taken off."""

    def remove(self) -> None:
        """Take it off."""


class LayerAnswer(Protocol):
    """Answers the hook on a layer."""

    def before_layer(self, layer: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return new (args, kwargs) of a decoder layer, or None to leave them."""


class LayerGraphs(LayerAnswer, Protocol):
    """Answers the hook on a layer that Dynamo traces."""

    def holds(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether it does."""


class ThreadCalls(Protocol):
    """The calls that run on a thread."""

    @property
    def calls(self) -> Sequence[LayerAnswer]:
        """The innermost last."""


class PatchedMethod:
    """Runs a function around one object's method, until it is removed.

    The replacement is an attribute of the object. Dynamo guards on such attributes (it does not guard on hooks), so a
    model that was compiled before runs the replacement, too.

    Args:
        owner: The object; an object without the method is left alone.
        name: The method.
        replacement: Runs in its place.
        eager: Run everything inside the method without Dynamo.
        held: Calls in which Dynamo finds the method as it was.
    """

    def __init__(
        self,
        owner: Any,
        name: str,
        replacement: Replacement,
        eager: bool = False,
        held: Callable[[tuple[Any, ...], dict[str, Any]], bool] | None = None,
    ) -> None:
        self.owner, self.name, self.held = owner, name, held
        self.replacement: Replacement | None = replacement
        self.earlier = vars(owner).get(name)  # somebody else's replacement
        original = getattr(owner, name, None)
        if original is None:
            self.replacement = None
            return
        self.original: Callable[..., Any] = original
        functools.update_wrapper(self, original, updated=())  # transformers reads the signature of forward
        self.__code__ = getattr(original, "__code__", None)  # so does torch.export, which is then refused in one line
        self._run = torch.compiler.disable(replacement) if eager else replacement
        if held is not None:
            self.__class__ = _with_own_code(type(self))
        vars(owner)[name] = self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the method."""
        if self.held is not None and is_compiling() and self.held(args, kwargs):
            return self.original(*args, **kwargs)
        return self.original(*args, **kwargs) if self.replacement is None else self._run(self.original, args, kwargs)

    def remove(self) -> None:
        """Give the object back what it had. Whoever still holds the replacement calls the method itself."""
        self.replacement = None
        if vars(self.owner).get(self.name) is self:
            del vars(self.owner)[self.name]
            earlier = self.earlier
            while isinstance(earlier, PatchedMethod) and earlier.replacement is None:  # removed before this one
                earlier = earlier.earlier
            if earlier is not None:
                vars(self.owner)[self.name] = earlier

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """Give a copy of the object its own method, not replaced."""
        made = memo.get(id(self.owner))
        if made is None:  # only the method is copied
            return self
        if self.earlier is not None:
            return copy.deepcopy(self.earlier, memo)
        return inspect.getattr_static(type(made), self.name).__get__(made, type(made))

    def __reduce__(self) -> Any:
        """Give the unpickled object its own method, not replaced."""
        if self.earlier is not None:
            return _itself, (self.earlier,)
        return getattr, (self.owner, self.name)


def _with_own_code(kind: type[PatchedMethod]) -> type[PatchedMethod]:
    """A class whose ``__call__`` is compiled by itself.

    Dynamo keeps graphs with the code of a function, and only a few. Those of an earlier block, which no longer run,
    would leave no room for the next one.
    """
    call = kind.__call__
    own = types.FunctionType(call.__code__.replace(), call.__globals__, call.__name__)
    return type(kind.__name__, (kind,), {"__call__": own, "__doc__": kind.__doc__})


#: Whether an export records a program; torch before 2.7 does not tell.
_is_exporting: Callable[[], bool] = getattr(torch.compiler, "is_exporting", lambda: False)


def is_compiling() -> bool:
    """Whether Dynamo traces what runs, to compile it and not to export it."""
    return torch.compiler.is_compiling() and not _is_exporting()


def _itself(value: Any) -> Any:
    return value


class PatchedLoss:
    """Runs a function around a model's loss function, until it is removed.

    A model finds its loss function under ``_loss_function``, or else by its ``loss_type``. The first is set.

    Args:
        model: A model of transformers.
        replacement: Runs in its place.
    """

    def __init__(self, model: Any, replacement: Replacement) -> None:
        self.model, self.replacement = model, replacement
        self.original: Callable[..., Any] = model.loss_function
        self.earlier = vars(model).get("_loss_function")
        vars(model)["_loss_function"] = self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Compute the loss."""
        return self.replacement(self.original, args, kwargs)

    def remove(self) -> None:
        """Give the model what it had."""
        if vars(self.model).get("_loss_function") is self:
            del vars(self.model)["_loss_function"]
            if self.earlier is not None:
                vars(self.model)["_loss_function"] = self.earlier

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return copy.deepcopy(self.original, memo)

    def __reduce__(self) -> Any:
        return _itself, (self.original,)


def observe_calls(owner: Any, name: str, tell: Callable[[Mapping[str, Any]], None]) -> PatchedMethod:
    """Let ``tell`` have the arguments of a method by name before each call, and an empty mapping after it."""
    # the class knows the names of the arguments, even where an instance's method was replaced by a wrapper
    described = inspect.getattr_static(type(owner), name, None)

    def replacement(original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        named = original if described is None else described.__get__(owner, type(owner))
        tell(bound_arguments(named, args, kwargs))
        try:
            return original(*args, **kwargs)
        finally:
            tell({})

    return PatchedMethod(owner, name, replacement)


class ModelHook:
    """A hook that does nothing in a copy of its module."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return no_hook

    def __reduce__(self) -> Any:
        return _get_no_hook, ()


class BeforeForward(ModelHook):
    """A forward-pre-hook."""

    def __init__(self, hook: BeforeHook) -> None:
        self.hook = hook

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> Any:
        """Run the hook."""
        # torch leaves kwargs out while another thread registers or removes the hook: that call is not of interest
        return None if kwargs is None else self.hook(module, args, kwargs)


class BeforeLayer(ModelHook):
    """Asks the call that runs on this thread what a decoder layer gets. It runs in every layer of every step.

    Args:
        layer: Number of the layer.
        thread: The calls that run on this thread.
        graphs: Answers where Dynamo traces the layer.
    """

    def __init__(self, layer: int, thread: ThreadCalls, graphs: LayerGraphs) -> None:
        self.layer, self.thread, self.graphs = layer, thread, graphs

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> Any:
        """Run the hook."""
        if is_compiling() and kwargs is not None and self.graphs.holds(args, kwargs):
            return self.graphs.before_layer(self.layer, args, kwargs)
        calls = self.thread.calls
        return calls[-1].before_layer(self.layer, args, kwargs) if calls and kwargs is not None else None


class AfterForward(ModelHook):
    """A forward hook."""

    def __init__(self, hook: Callable[[nn.Module, Any, Any], Any]) -> None:
        self.hook = hook

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        """Run the hook."""
        return self.hook(module, args, output)


def no_hook(*args: Any, **kwargs: Any) -> None:
    """Stands in for a hook in a copied or pickled module; it does nothing."""


def _get_no_hook() -> Callable[..., None]:
    return no_hook


def before(module: nn.Module, hook: BeforeHook, first: bool = False) -> Removable:
    """Register a forward-pre-hook, before all others if ``first``."""
    handle: Removable = module.register_forward_pre_hook(BeforeForward(hook), with_kwargs=True, prepend=first)
    return handle


def before_layer(module: nn.Module, layer: int, thread: ThreadCalls, graphs: LayerGraphs) -> Removable:
    """Register a hook that asks the running call, before all other hooks: those shall see what the layer gets."""
    hook = BeforeLayer(layer, thread, graphs)
    handle: Removable = module.register_forward_pre_hook(hook, with_kwargs=True, prepend=True)
    return handle


def after(module: nn.Module, hook: Callable[[nn.Module, Any, Any], Any]) -> Removable:
    """Register a forward hook."""
    handle: Removable = module.register_forward_hook(AfterForward(hook))
    return handle


class SharedHooks:
    """Hooks that several calls need, perhaps on several threads: on the model while one of them runs.

    A hook that does nothing still costs time in each layer of each step, so hooks that nobody needs are taken off.

    Args:
        register: Puts the hooks on the model.
        stay: Leave the hooks on the model after a call, until :meth:`drop`: the next call will most likely need them.

    Attributes:
        held: Whether :meth:`hold` was called.
    """

    def __init__(self, register: Callable[[], list[Removable]], stay: bool = False) -> None:
        self._register = register
        self._stay = stay
        # reentrant: the garbage collector may end a dropped run on the thread that holds the lock
        self._lock = threading.RLock()
        self._handles: list[Removable] = []
        self._users = 0
        self.held = False
        self._closed = False

    def acquire(self) -> None:
        """Put the hooks on the model for a call that begins.

        Raises:
            UnsupportedFeatureError: The block has ended; the hooks would stay on the model for ever.
        """
        with self._lock:
            if not self._closed and not self._handles:
                self._handles = self._register()
            if self._closed:  # perhaps while they were registered
                self.remove()
                raise UnsupportedFeatureError(
                    "the apply block ended while a call of the model was starting on another thread, or its run"
                    " was dropped",
                    "keep the run, and wait for all calls, also of other threads, before you end it",
                )
            self._users += 1

    def release(self) -> None:
        """Take the hooks off when the call ends, unless another needs them or they stay."""
        with self._lock:
            self._users -= 1
            if not self._stay and not self._users:
                self.remove()

    def hold(self) -> None:
        """Leave the hooks on the model until the block ends: graphs are traced with them, and nothing guards that."""
        if not self.held:
            self.acquire()
            self.held = True

    def drop(self) -> None:
        """Take the hooks off, unless a call needs them."""
        if self._handles:  # asked without the lock: this runs at every step
            with self._lock:
                if not self._users:
                    self.remove()

    def close(self) -> None:
        """Take the hooks off for good."""
        with self._lock:
            self._closed = True
            self.remove()

    def remove(self) -> None:
        """Take the hooks off."""
        handles, self._handles = self._handles, []
        for handle in handles:
            handle.remove()


@contextmanager
def in_use(shared: SharedHooks) -> Iterator[None]:
    """Keep the hooks on the model inside the block."""
    shared.acquire()
    try:
        yield
    finally:
        shared.release()


#: ``show(number of the module, args, kwargs)``.
ShowCall: TypeAlias = Callable[[int, tuple[Any, ...], dict[str, Any]], None]


@contextmanager
def before_each(modules: Sequence[nn.Module], show: ShowCall) -> Iterator[None]:
    """Show the arguments of each module's calls inside the block.

    Args:
        modules: The modules.
        show: Gets them.
    """

    def hook(number: int) -> BeforeHook:
        return lambda module, args, kwargs: show(number, args, kwargs)

    handles = [before(module, hook(number)) for number, module in enumerate(modules)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
