"""One generation with a method, whoever else uses the model."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from tokenprune.adapters import adapter_for
from tokenprune.config import Method
from tokenprune.engine.reservation import reservation
from tokenprune.engine.unwrap import unwrap
from tokenprune.errors import BusyModelError, ConfigError, TokenPruneError
from tokenprune.run.apply import apply
from tokenprune.run.handle import Run
from tokenprune.run.methods import check_is_method


class _SharedRun:
    """A run that prunes nothing by itself, while generations use it.

    Args:
        run: The run.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.users = 0


#: Joining and leaving are one step each.
_LOCK = threading.Lock()


def generate(model: Any, method: Method, /, **arguments: Any) -> Any:
    """``model.generate(**arguments)`` with a method, for this one call.

    If a method is applied to the model, this call uses its own all the same, as in :meth:`Run.using`. If none is, the
    model is as before at the end, and calls of other threads meanwhile are not pruned. Threads may call it at once. A
    service, or whoever wants the report, applies a method once and opens a ``using`` block.

    Args:
        model: A supported transformers model, or a wrapper around one.
        method: The method. Its layers are chosen as by ``apply`` without calibration samples.
        arguments: As for ``model.generate``.

    Returns:
        What ``model.generate`` returns.

    Raises:
        TokenPruneError: See :func:`tokenprune.apply`.
    """
    if method is None:
        raise ConfigError("generate needs a Method, got None", "call model.generate: it is not pruned")
    check_is_method(method, "generate")
    with _joined(model) as run, run.using(method):
        return model.generate(**arguments)


@contextmanager
def _joined(model: Any) -> Iterator[Run]:
    """The run on a model; one that prunes nothing by itself where there is none, until the last that uses it ends."""
    shared: _SharedRun | None
    with _LOCK:
        mark = reservation(adapter_for(unwrap(model)).decoder)
        if mark is None:
            run = apply(model, None)
            mark = reservation(adapter_for(unwrap(model)).decoder)
            assert mark is not None, "it was just applied"
            mark.shared = _SharedRun(run)
        shared = mark.shared
        run = mark.run()
        if run is None:
            raise BusyModelError("the model is being measured", "wait until that has ended")
        if shared is not None:
            shared.users += 1
    try:
        yield run
    finally:
        if shared is not None:
            with _LOCK:
                shared.users -= 1
                if not shared.users:
                    mark.shared = None
                    with suppress(TokenPruneError):  # the call's own error says more
                        shared.run.close()
