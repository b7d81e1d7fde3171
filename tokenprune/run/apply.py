"""Applies a method to a model."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from weakref import ref

from torch import nn

from tokenprune.adapters import adapter_for
from tokenprune.adapters.base import Adapter
from tokenprune.config import Method
from tokenprune.core.notebook import Progress, progress_in_notebooks
from tokenprune.engine.compiled import eager
from tokenprune.engine.engine import Engine, attached
from tokenprune.engine.plan import Plan
from tokenprune.engine.reservation import check_free, reserved
from tokenprune.engine.trials.calibrate import (
    Calibration,
    as_batches,
    compare_trials,
    entropy_profile,
    last_logits,
    remember_verdicts,
    why_unmet,
)
from tokenprune.engine.unwrap import unwrap
from tokenprune.errors import BudgetError, ConfigError, TokenPruneError, UnsupportedFeatureError
from tokenprune.fingerprint import fingerprint
from tokenprune.recording import Recording
from tokenprune.run.handle import Run
from tokenprune.run.methods import RunMethods, check_is_method
from tokenprune.selectors.base import LayerChoice, SelectorContext
from tokenprune.selectors.entropy_profile import EntropyProfile


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


@progress_in_notebooks
def apply(
    model: nn.Module,
    method: Method | None,
    calibration: Calibration | None = None,
    progress: Progress | None = None,
    *,
    also: Sequence[Method] = (),
) -> Run:
    """Prune a model's visual tokens from now on; ``forward`` and ``generate`` work as before.

    Like ``open``: the method acts at once, and the end of a ``with`` block or ``run.close()`` takes it off again. Keep
    the run: one that is dropped takes the method off, with a warning.

    Wrappers are looked through: a PEFT model, ``torch.compile(model)``, ``DistributedDataParallel``. What was compiled
    runs eagerly meanwhile. Several threads may use the model at once, and each call may use another method or budget:
    see :meth:`Run.using`.

    Args:
        model: Any supported transformers model; it is not changed, and nothing is left on it afterwards.
        method: The method; see :class:`tokenprune.Method`. With None only calls inside :meth:`Run.using` are pruned.
        calibration: A few inputs (as for ``model(**inputs)``), or a single one, for layer selectors that measure the
            model.
        progress: Called while a layer selector measures the model, with (what is done, steps done, steps in total);
            None shows a bar in a notebook.
        also: Further methods, for :meth:`Run.using`. Only those whose layers are measured on ``calibration`` have to
            be given here, each with its budget: a model that answers cannot be measured.

    Returns:
        The run: ``run.stages`` and ``run.report`` tell what the last prefill did.

    Raises:
        UnsupportedModelError: The engine cannot find what it needs in the model.
        UnsupportedFeatureError: Flex attention, flash attention with sliding windows ...; or, at the end, the model ran
            and never read a prompt, so that nothing was pruned.
        LayerError: A layer is out of range, or the method needs signals that do not exist before it.
        BusyModelError: A method is already applied to the model: its run's ``using`` lets single calls use another.
    """
    given = [*([] if method is None else [method]), *also]
    for one in given:
        check_is_method(one, "apply")
    adapter = adapter_for(unwrap(model))
    with ExitStack() as stack:
        mark = stack.enter_context(reserved(adapter.decoder))
        batches = None if calibration is None else as_batches(calibration)
        with eager(model):  # a wrapper that was compiled runs eagerly, too
            choices = [one.layers.select(_context(adapter, one, batches, progress)) for one in given]
        methods = RunMethods(adapter, partial(_context, adapter, calibration=None), calibration is not None)
        for one, choice in zip(given, choices, strict=True):
            methods.remember(one, choice)
        recordings = [methods.of(one)[0] for one in given]  # what cannot run is refused now
        recording = methods.unpruned() if method is None else recordings[0]
        engine = stack.enter_context(attached(adapter, recording, model))
        applied = stack.pop_all()

    def end() -> TokenPruneError | None:
        applied.close()
        return engine.why_nothing_was_pruned()

    run = Run(recording, end, partial(using, engine, methods))
    mark.run = ref(run)
    return run


@progress_in_notebooks
def choose_layers(
    model: nn.Module, method: Method, calibration: Calibration | None = None, progress: Progress | None = None
) -> LayerChoice:
    """The layers at which a method would prune a model, and why these; arguments and errors as for :func:`apply`."""
    check_is_method(method, "choose_layers")
    adapter = adapter_for(unwrap(model))
    if calibration is not None:
        check_free(adapter.decoder)  # a model that prunes would be measured
    return method.layers.select(_context(adapter, method, calibration, progress))


def check_method(model: nn.Module, method: Method) -> tuple[int, ...] | None:
    """Check a method against a model, as far as nothing has to run for it.

    Args:
        model: A supported transformers model.
        method: The method.

    Returns:
        The layers before which it will drop tokens; None if its selector measures the model first.

    Raises:
        TokenPruneError: The method cannot run on the model, whatever its selector would choose.
    """
    check_is_method(method, "check_method")
    adapter = adapter_for(unwrap(model))
    layers = method.layers.known_layers(_context(adapter, method, None))
    if layers is not None:
        Plan.of(method, layers, adapter)
        return layers
    method.check_fits(adapter.architecture)
    problem: TokenPruneError | None = None
    earlier = [(trial.layers, trial.pruner) for trial in method.layers.earlier_trials(adapter.tower_layers)]
    own = [((layer,), method.pruner) for layer in range(1, adapter.num_layers)]
    for layers, pruner in [*earlier, *own]:  # the selector will choose among these
        try:
            Plan.of(method.model_copy(update={"pruner": pruner}), layers, adapter)
        except (ConfigError, BudgetError):  # for several stages: what the selector will choose is unknown
            return None
        except TokenPruneError as error:
            problem = problem or error
        else:
            return None
    if problem is not None:
        raise problem
    return None


def verify_methods(
    model: nn.Module, methods: Mapping[str, Method], calibration: Calibration
) -> tuple[EntropyProfile, dict[str, LayerChoice]]:
    """Measure a model's entropy curves, and verify every method whose selector does so; without any cache.

    Args:
        model: A supported transformers model.
        methods: Methods by name. Those whose selector does not verify are passed over.
        calibration: As for :func:`apply`.

    Returns:
        The curves, with a verdict on every method on which one was reached, and what each selector chose.

    Raises:
        LayerError: A selector can choose no layer.
        BusyModelError: A method is applied to the model.
    """
    adapter = adapter_for(unwrap(model))
    check_free(adapter.decoder)
    batches = as_batches(calibration)
    profiles = [entropy_profile(adapter, batches, cache=False)]
    choices = {}
    for name, method in methods.items():
        if method.layers.verifies:
            known = _context(adapter, method, batches)
            known = replace(known, measure_entropy=lambda: profiles[-1], remember=profiles.append)
            choices[name] = method.layers.select(known)
    return profiles[-1], choices


def _context(
    adapter: Adapter, method: Method, calibration: Calibration | None, progress: Progress | None = None
) -> SelectorContext:
    known = SelectorContext(
        adapter.name,
        adapter.num_layers,
        pruner=method.pruner,
        definition=method.model_dump(mode="json", exclude={"label"}),
        fingerprint=lambda: fingerprint(adapter.model),
        architecture=adapter.architecture,
        tower_layers=adapter.tower_layers,
    )
    if calibration is None:
        return known
    batches = as_batches(calibration)
    return replace(
        known,
        measure_entropy=lambda: entropy_profile(adapter, batches, progress=progress),
        last_logits=lambda layer: last_logits(adapter, method, batches, layer),
        compare=lambda trials: compare_trials(adapter, method, batches, trials, progress),
        refusal=lambda layers: why_unmet(adapter, method.budget, batches, layers),
        remember=lambda profile: remember_verdicts(adapter, batches, profile),
    )
