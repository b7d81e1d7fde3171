"""Parts of a model that were compiled run eagerly while a method is applied, but for what a graph may hold."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

from torch import nn

from tokenprune.engine.hooks import PatchedMethod, Removable, Replacement

#: ``held(args, kwargs)`` of a module's call: whether its compiled code may run.
Held: TypeAlias = Callable[[tuple[Any, ...], dict[str, Any]], bool]


class EagerModule:
    """Lets a module that was compiled run eagerly, until removed.

    Dynamo does not see hooks that are registered after a compilation: a compiled layer would run unpruned.

    Args:
        module: The module.
        held: Its calls that run compiled as before.
    """

    def __init__(self, module: Any, held: Held) -> None:
        self.module, self.held = module, held
        self.compiled = module._compiled_call_impl
        module._compiled_call_impl = self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the module."""
        run = self.compiled if self.held(args, kwargs) else self.module._call_impl
        return run(*args, **kwargs)

    def remove(self) -> None:
        """Let the module run compiled again."""
        if self.module._compiled_call_impl is self:
            self.module._compiled_call_impl = self.compiled


def none_held(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """No call runs compiled."""
    return False


def run_eagerly(model: nn.Module, held: Held = none_held) -> list[Removable]:
    """Let everything inside a model that was compiled run eagerly.

    Args:
        model: The model. ``module.compile()``, ``torch.compile(module)`` and ``torch.compile(module.forward)`` of its
            modules are found.
        held: The calls that run compiled as before.

    Returns:
        What to remove when the compiled code may run again.
    """
    paused: list[Removable] = []
    for module in list(model.modules()):
        if getattr(module, "_compiled_call_impl", None) is not None:
            paused.append(EagerModule(module, held))
        inner = module._modules.get("_orig_mod")  # torch.compile(module) wraps a module under this name
        # torch.compile(module.forward) keeps the method under this name
        original = inner or getattr(vars(module).get("forward"), "_torchdynamo_orig_callable", None)
        if original is not None:
            paused.append(PatchedMethod(module, "forward", _instead(original, held)))
    return paused


def _instead(function: Callable[..., Any], held: Held) -> Replacement:
    return lambda compiled, args, kwargs: (compiled if held(args, kwargs) else function)(*args, **kwargs)


@contextmanager
def eager(model: nn.Module) -> Iterator[None]:
    """Run everything inside the model eagerly inside the block, also what was compiled."""
    paused = run_eagerly(model)
    try:
        yield
    finally:
        for item in reversed(paused):
            item.remove()
