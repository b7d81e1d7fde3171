"""Parts of a model that were compiled run eagerly while a method is applied."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from tokenprune.engine.hooks import PatchedMethod, Removable, Replacement


class EagerModule:
    """Lets a module that was compiled run eagerly, until removed.

    Dynamo does not see hooks that are registered after a compilation: a compiled layer would run unpruned.
    """

    def __init__(self, module: Any) -> None:
        self.module = module
        self.compiled = module._compiled_call_impl
        module._compiled_call_impl = None

    def remove(self) -> None:
        """Let the module run compiled again."""
        if self.module._compiled_call_impl is None:
            self.module._compiled_call_impl = self.compiled


def run_eagerly(model: nn.Module) -> list[Removable]:
    """Let everything inside a model that was compiled run eagerly.

    Args:
        model: The model. ``module.compile()``, ``torch.compile(module)`` and ``torch.compile(module.forward)`` of its
            modules are found.

    Returns:
        What to remove when the compiled code may run again.
    """
    paused: list[Removable] = []
    for module in list(model.modules()):
        if getattr(module, "_compiled_call_impl", None) is not None:
            paused.append(EagerModule(module))
        inner = module._modules.get("_orig_mod")  # torch.compile(module) wraps a module under this name
        # torch.compile(module.forward) keeps the method under this name
        original = inner or getattr(vars(module).get("forward"), "_torchdynamo_orig_callable", None)
        if original is not None:
            paused.append(PatchedMethod(module, "forward", _instead(original)))
    return paused


def _instead(function: Callable[..., Any]) -> Replacement:
    return lambda original, args, kwargs: function(*args, **kwargs)


@contextmanager
def eager(model: nn.Module) -> Iterator[None]:
    """Run everything inside the model eagerly inside the block, also what was compiled."""
    paused = run_eagerly(model)
    try:
        yield
    finally:
        for item in reversed(paused):
            item.remove()
