"""Running calls of the model, which act at its layers, and the calls that each thread is in."""

import threading
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from tokenprune.adapters.towers import TowerRun
from tokenprune.engine.hooks import SharedHooks


@dataclass
class Observation:
    """The states and arguments of layer K-1, for the stage before layer K.

    Attributes:
        states: ``query``, ``key``, ``value`` before rotary embedding, ``[batch, rows, heads, head_dim]``; and
            ``previous``, the hidden states that entered the layer, ``[batch, rows, dim]``.
        arguments: The layer's arguments by name; None where attention rows are not read.
        earlier: Keys of earlier turns as the layer attends to them, ``[batch, kv_heads, held, head_dim]``; None in a
            first turn, and where attention rows are not read.
    """

    states: dict[str, Tensor] = field(default_factory=dict)
    arguments: Mapping[str, Any] | None = None
    earlier: Tensor | None = None


class Call:
    """One running call of the model. This one changes nothing; a prefill and a decode step are the others.

    Attributes:
        awaited: Modules of the model's own chain (inner model, decoder) that have not been called yet.
        tower_runs: Runs of the vision tower that are part of the call.
        hooks: The hooks that the call needs while it runs.
        changes_outputs: Whether :meth:`after_layer` does anything, once the decoder has been entered.
        reads_rotary: Whether :meth:`see_rotary` is wanted.
        watched_by: Who observes the call. Hooks of other methods may be on the model at the same time; they pass it
            over.
        prunes: Whether the call prunes a prompt.
        continues_pruned: Whether the call was given a pruned KV cache, and cuts the masks to its keys.
        unseen_cache: Whether the model pruned and was to return a KV cache, and returned none that is known: it dropped
            the cache, or it hides one whose layers do not know which rows they hold. Known once the call has finished.
    """

    hooks: tuple[SharedHooks, ...] = ()
    changes_outputs = False
    reads_rotary = False
    watched_by: tuple[Hashable, ...] = ()
    prunes = False
    continues_pruned = False
    unseen_cache = False

    def __init__(self) -> None:
        self.awaited: list[nn.Module] = []
        self.tower_runs: list[TowerRun] = []

    def observation(self, stage: int) -> Observation | None:
        """The place for the states of the layer before a stage; None where they are not needed."""
        return None

    def stored_keys(self, layer: int) -> Tensor | None:
        """Keys of earlier turns of a decoder layer that runs next, where the prompt is pruned; None in a first turn."""
        return None

    def see_input(self, hidden: Tensor) -> None:
        """Note the hidden states that enter layer 0, ``[batch, seq, dim]``."""

    def see_rotary(self, original: Callable[..., Any], arguments: Mapping[str, Any], value: Any) -> None:
        """Note that a rotary module of the decoder, whose forward is ``original``, made ``value`` of its arguments."""

    def enter_decoder(self, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the arguments with which the decoder runs."""
        return arguments

    def leave_decoder(self, output: Any) -> Any:
        """Return the decoder's output, changed or as it is."""
        return output

    def before_layer(self, layer: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return new (args, kwargs) of a decoder layer, or None to leave them."""
        return None

    def after_layer(self, layer: int, hidden: Tensor) -> Tensor:
        """Return the output of a decoder layer, ``[batch, rows, dim]``, changed or as it is."""
        return hidden

    def loss(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return the loss that the model's loss function computes."""
        return function(*args, **kwargs)

    def finish(self, output: Any) -> None:
        """End the call: the model has returned."""


class ThreadState(threading.local):
    """The state of one thread that uses an applied model. Every thread sees its own.

    Attributes:
        calls: The running calls, the innermost last.
        copies: Times that each running generation repeats a sample (beams, sequences), the innermost last.
        unseen_cache: :attr:`Call.unseen_cache` of the last call that finished.
    """

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.copies: list[int] = []
        self.unseen_cache = False

    @property
    def current(self) -> Call | None:
        """The innermost running call."""
        return self.calls[-1] if self.calls else None

    def call_watched_by(self, observer: Hashable) -> Call | None:
        """The innermost running call, if ``observer`` is one that observes it."""
        call = self.current
        return call if call is not None and observer in call.watched_by else None

    def run(self, call: Call, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run the model's forward as a call; its hooks are on the model meanwhile."""
        for hooks in call.hooks:
            hooks.acquire()
        self.calls.append(call)
        try:
            return forward(*args, **kwargs)
        finally:
            self.calls.pop()
            for hooks in call.hooks:
                hooks.release()
