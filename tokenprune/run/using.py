"""A block whose calls use another method than the run's own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tokenprune.config import Method
from tokenprune.engine.engine import Engine
from tokenprune.errors import UnsupportedFeatureError
from tokenprune.recording import Recording
from tokenprune.run.methods import RunMethods


@contextmanager
def using(engine: Engine, methods: RunMethods, method: Method | None) -> Iterator[Recording]:
    """Let the calls of this context use another method inside the block.

    Args:
        engine: The applied model.
        methods: The methods that its calls may use.
        method: The method; None leaves the calls unpruned.

    Raises:
        TokenPruneError: The method cannot run on the model.
        UnsupportedFeatureError: At the end, the run was closed inside the block, no call was made there, or the block
            ends in another context than it began in.
    """
    recording, plan = (methods.unpruned(), None) if method is None else methods.of(method)
    try:
        with engine.using(recording, plan) as use:
            yield recording
            if engine.ended:
                raise UnsupportedFeatureError(
                    "the run was closed inside a using block: what was called after that was not pruned",
                    "close the run when all blocks have ended",
                )
            if not use.called and not engine.may_run_graphs:
                raise UnsupportedFeatureError(
                    "the model was not called inside the using block, or on a thread to which the block does not"
                    " belong, with the run's own method",
                    "open the block on the thread that calls the model, or run the call there with"
                    " contextvars.copy_context().run, as asyncio.to_thread does",
                )
        if use.moved:
            raise UnsupportedFeatureError(
                "the using block ended on another thread, or in another task, than it began: calls in between may have"
                " been in no block",
                "let one thread or task run the whole block; whoever advances a generator runs what stands behind its"
                " yield",
            )
    finally:
        recording.detach_places()
