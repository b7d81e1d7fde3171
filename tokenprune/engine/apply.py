"""Applying a method to a model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from tokenprune.adapters import adapter_for
from tokenprune.adapters.base import Adapter
from tokenprune.config import Method
from tokenprune.engine.calibrate import (
    Calibration,
    as_batches,
    can_meet,
    compare_trials,
    entropy_profile,
    last_logits,
)
from tokenprune.engine.compiled import eager
from tokenprune.engine.engine import Engine
from tokenprune.engine.reservation import check_free, reserved
from tokenprune.engine.unwrap import unwrap
from tokenprune.errors import ConfigError, UnsupportedFeatureError
from tokenprune.run import Run
from tokenprune.selectors.base import LayerChoice, ModelProfile


@contextmanager
def apply(model: nn.Module, method: Method, calibration: Calibration | None = None) -> Iterator[Run]:
    """Prune a model's visual tokens inside the block; ``forward`` and ``generate`` work as before.

    Wrappers are looked through: a PEFT model, ``torch.compile(model)``, ``DistributedDataParallel``. What was compiled
    runs eagerly inside the block. Several threads may use the model at once.

    Args:
        model: Any supported transformers model; it is not changed, and nothing is left on it afterwards.
        method: What to do; see :class:`tokenprune.Method`.
        calibration: A few inputs (as for ``model(**inputs)``), or a single one, for layer selectors that measure the
            model.

    Yields:
        The run: ``run.stages`` and ``run.report`` tell what the last prefill did.

    Raises:
        UnsupportedModelError: The engine cannot find what it needs in the model.
        UnsupportedFeatureError: Flex attention, flash attention with sliding windows ...; or the model ran inside the
            block and never read a prompt there, so that nothing was pruned.
        LayerError: A layer is out of range, or the method needs signals that do not exist before it.
        BusyModelError: A method is already applied to the model.
    """
    _check_method(method, "apply")
    adapter = adapter_for(unwrap(model))
    with reserved(adapter.decoder), eager(model):  # a wrapper that was compiled runs eagerly, too
        choice = method.layers.select(_profile(adapter, method, calibration))
        method = chosen(method, choice)
        run = Run(method, choice, adapter.name, adapter.num_layers, adapter.text_config)
        engine = Engine(adapter, run)
        try:
            engine.attach()
            yield run
        finally:
            engine.detach()
    if engine.finished_calls and not engine.prompts:
        raise UnsupportedFeatureError(
            f"the model ran {engine.finished_calls} times inside the apply block but never read a prompt there:"
            " nothing was pruned",
            "start the conversation inside the block, without a cache from before it",
        )


def _check_method(method: object, function: str) -> None:
    if not isinstance(method, Method):
        raise ConfigError(
            f"{function} needs a Method, got {type(method).__name__}", "use tp.load_method(name) or tp.Method"
        )


def choose_layers(model: nn.Module, method: Method, calibration: Calibration | None = None) -> LayerChoice:
    """The layers at which a method would prune a model, and why these; arguments and errors as for :func:`apply`."""
    _check_method(method, "choose_layers")
    adapter = adapter_for(unwrap(model))
    if calibration is not None:
        check_free(adapter.decoder)  # a model that prunes would be measured
    return method.layers.select(_profile(adapter, method, calibration))


def chosen(method: Method, choice: LayerChoice) -> Method:
    """The method as its selector wants it: with the pruner that the selector chose, if it chose one."""
    return method if choice.pruner is None else method.model_copy(update={"pruner": choice.pruner})


def _profile(adapter: Adapter, method: Method, calibration: Calibration | None) -> ModelProfile:
    if calibration is None:
        return ModelProfile(adapter.name, adapter.num_layers, pruner=method.pruner)
    batches = as_batches(calibration)
    return ModelProfile(
        adapter.name,
        adapter.num_layers,
        lambda: entropy_profile(adapter, batches),
        lambda layer: last_logits(adapter, method, batches, layer),
        method.pruner,
        lambda trials: compare_trials(adapter, method, batches, trials),
        lambda layers: can_meet(adapter, method.budget, batches, layers),
    )
