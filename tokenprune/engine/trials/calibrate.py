"""Runs calibration samples through a model and measures them; layer selectors decide by the results."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tokenprune.adapters import adapter_for
from tokenprune.adapters.base import Adapter
from tokenprune.adapters.layout import VisualLayout
from tokenprune.budgets.base import Budget, Schedule
from tokenprune.config import Method
from tokenprune.core.notebook import Progress, progress_in_notebooks
from tokenprune.engine import hooks
from tokenprune.engine.compiled import eager
from tokenprune.engine.engine import attached
from tokenprune.engine.layer_call import LayerCalls
from tokenprune.engine.prompt import count_text
from tokenprune.engine.reservation import check_free
from tokenprune.engine.trials.distinct import distinct
from tokenprune.engine.trials.fidelity import last_token_logits
from tokenprune.engine.trials.profile_cache import ProfileCache
from tokenprune.engine.trials.race import Bench, RaceRules, run_race
from tokenprune.engine.trials.tower_entropy import TowerEntropy
from tokenprune.engine.unwrap import unwrap
from tokenprune.errors import BudgetError, ConfigError, UnsupportedFeatureError
from tokenprune.flops.decoder import prefill_cost
from tokenprune.ops.entropy import state_entropy
from tokenprune.ops.finite import is_distribution
from tokenprune.ops.rows import keep_index, take
from tokenprune.recording import Recording
from tokenprune.selectors.base import LayerChoice, Trial, TrialResult
from tokenprune.selectors.entropy_profile import EntropyProfile
from tokenprune.selectors.fixed import Fixed

#: Calibration inputs: a few samples or batches as for ``model(**inputs)``, or a single one.
Calibration = Mapping[str, Any] | Iterable[Mapping[str, Any]]


def as_batches(calibration: Calibration) -> list[Mapping[str, Any]]:
    """Calibration inputs as a list; a single mapping is a list of one.

    Raises:
        ConfigError: They are neither.
    """
    if isinstance(calibration, Mapping):
        return [calibration]
    got = type(calibration).__name__
    if isinstance(calibration, Iterable) and not isinstance(calibration, str | bytes | Tensor):
        batches = list(calibration)
        wrong = next((item for item in batches if not isinstance(item, Mapping)), None)
        if batches and wrong is None and all(isinstance(item, Mapping) for item in batches):
            return batches
        got = "an empty list" if not batches else f"a list with {type(wrong).__name__}"
    raise ConfigError(
        f"calibration is {got}", "give a list of inputs as for model(**inputs), e.g. [processor(...), processor(...)]"
    )


def observe(model: nn.Module, inputs: Mapping[str, Any], callback: Callable[[int, Tensor, Tensor], None]) -> None:
    """Run one unpruned forward and show the visual tokens at the input of every decoder layer.

    Args:
        model: A supported transformers model.
        inputs: Arguments of its forward.
        callback: Called as ``callback(layer, hidden, visual_mask)`` with ``hidden`` ``[batch, n_visual, dim]``
            (right-padded) and ``visual_mask`` bool ``[batch, n_visual]``.

    Raises:
        UnsupportedFeatureError: The inputs hold no visual tokens.
        BusyModelError: A method is applied to the model, which would be observed while it prunes.
    """
    adapter = _free(model)
    _observe(adapter, inputs, _located(adapter, inputs), callback)


def _located(adapter: Adapter, inputs: Mapping[str, Any]) -> VisualLayout:
    """Where the visual tokens of a calibration sample are.

    Raises:
        ConfigError: The inputs are no mapping.
        UnsupportedFeatureError: There are no visual tokens.
    """
    if not isinstance(inputs, Mapping):
        raise ConfigError(f"the inputs are {type(inputs).__name__}", "give the arguments of model(**inputs) by name")
    layout = adapter.locate(inputs)
    if layout is None or not bool(layout.mask.any()):
        raise UnsupportedFeatureError("the inputs hold no visual tokens", "give calibration samples with images")
    return layout


@torch.no_grad()
def _observe(
    adapter: Adapter,
    inputs: Mapping[str, Any],
    layout: VisualLayout,
    callback: Callable[[int, Tensor, Tensor], None],
) -> None:
    rows = keep_index(layout.mask, int(layout.mask.sum(1).max())).flip(1)  # padding to the right
    rows = rows.gather(1, rows.masked_fill(rows < 0, adapter.num_layers + layout.mask.shape[1]).argsort(1))

    calls = [LayerCalls(layer, adapter.layer_signature) for layer in adapter.layers]

    def show(layer: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden = calls[layer].hidden(args, kwargs)
        callback(layer, take(hidden, rows, 1, 0), rows.to(hidden.device) >= 0)

    with eager(adapter.model), hooks.before_each(adapter.layers, show):
        adapter.model(**inputs)


@progress_in_notebooks
def measure_entropy(
    model: nn.Module, calibration: Calibration, cache: bool | Path = True, progress: Progress | None = None
) -> EntropyProfile:
    """Run calibration inputs through the unpruned model and record its entropy curves.

    They follow the visual tokens behind every layer of the vision tower and at the input of every decoder layer. Where
    the tower cannot be read, the profile says why, and has the decoder's curves alone.

    Args:
        model: A supported transformers model.
        calibration: A list of inputs as for ``model(**inputs)``, or a single one; every sample of every batch gives
            one curve.
        cache: Keep the result in the user's cache folder (or the given one), keyed by model and inputs (see
            :func:`tokenprune.fingerprint.fingerprint`), and read it from there next time. What has no fingerprint, e.g.
            a model on the disk, is measured anew. A folder that cannot be written is a warning.
        progress: Called after every batch; None shows a bar in a notebook.

    Raises:
        UnsupportedFeatureError: A sample holds no visual tokens, or its states hold NaN.
        BusyModelError: A method is applied to the model, which would be measured while it prunes.
    """
    return entropy_profile(_free(model), as_batches(calibration), cache, progress)


def _free(model: nn.Module) -> Adapter:
    """The adapter of a model to which no method is applied."""
    adapter = adapter_for(unwrap(model))
    check_free(adapter.decoder)
    return adapter


def entropy_profile(
    adapter: Adapter,
    calibration: Sequence[Mapping[str, Any]],
    cache: bool | Path = True,
    progress: Progress | None = None,
) -> EntropyProfile:
    """Measure the entropy curves of a model whose adapter is known; see :func:`measure_entropy`."""
    kept = ProfileCache(adapter.model, calibration, cache)
    known = kept.read()
    if known is not None:
        return known
    curves: list[tuple[float, ...]] = []
    tower_curves: list[tuple[float, ...]] = []
    refused = ""
    for number, inputs in enumerate(calibration, 1):
        columns: dict[int, Tensor] = {}

        def record(layer: int, hidden: Tensor, mask: Tensor, into: dict[int, Tensor] = columns) -> None:
            without = int((~mask.any(1)).sum())
            if without:  # it has no entropy, and would agree with the unpruned model whatever the method does
                raise UnsupportedFeatureError(
                    f"{without} of the {len(mask)} samples of a calibration batch have no visual tokens",
                    "give calibration samples with images only",
                )
            into[layer] = state_entropy(hidden, mask).cpu()

        layout = _located(adapter, inputs)
        tower = TowerEntropy(adapter, inputs, layout)
        with tower.watching():
            _observe(adapter, inputs, layout, record)
        behind = tower.curves()
        refused = refused or tower.refused
        if behind is not None:
            tower_curves += _finite(behind, "behind layer {} of the vision tower")
        entering = torch.stack([columns[layer] for layer in range(adapter.num_layers)], dim=1)
        curves += _finite(entering, "at the input of layer {}")
        if progress is not None:
            progress("entropy", number, len(calibration))
    profile = EntropyProfile(
        family=adapter.name,
        num_layers=adapter.num_layers,
        curves=tuple(curves),
        model=kept.model or "",
        tower=() if refused else tuple(tower_curves),
        tower_refused=refused,
    )
    kept.write(profile)
    return profile


def _finite(entropy: Tensor, where: str) -> list[tuple[float, ...]]:
    """Curves ``[batch, layers]`` as rows.

    Raises:
        UnsupportedFeatureError: One holds NaN; ``where`` with the layer's number says at which layer.
    """
    broken = ~entropy.isfinite()
    if bool(broken.any()):
        layer = int(broken.any(0).long().argmax())
        raise UnsupportedFeatureError(
            f"the visual states of a calibration sample hold NaN or infinity {where.format(layer)}",
            "check the weights and the inputs, or use another dtype",
        )
    return [tuple(row) for row in entropy.tolist()]


def remember_verdicts(
    adapter: Adapter, calibration: Sequence[Mapping[str, Any]], profile: EntropyProfile, cache: bool | Path = True
) -> None:
    """Keep entropy curves with their verdicts where :func:`entropy_profile` looks for them.

    Args:
        adapter: The model's adapter.
        calibration: The samples that the profile was made with.
        profile: The profile. Verdicts on other methods that have been kept meanwhile stay.
        cache: See :func:`measure_entropy`.
    """
    kept = ProfileCache(adapter.model, calibration, cache)
    kept.write((kept.read() or profile).with_verdicts(*profile.verdicts))


@torch.no_grad()
def last_logits(
    adapter: Adapter, method: Method, calibration: Sequence[Mapping[str, Any]], layer: int | None
) -> Tensor:
    """Logits of every calibration sample's last prompt token, with a method pruning before one layer, or unpruned.

    Args:
        adapter: The model's adapter.
        method: The method.
        calibration: Inputs as for ``model(**inputs)``.
        layer: The layer; None for the unpruned model.

    Returns:
        Float32 ``[samples, vocabulary]`` on the host.

    Raises:
        UnsupportedFeatureError: There are no samples, or the logits of one hold NaN.
    """
    pruned: AbstractContextManager[object] = nullcontext()
    if layer is not None:
        choice = LayerChoice((layer,), "a candidate")
        pruned = attached(adapter, Recording(method, choice, adapter.name, adapter.num_layers, adapter.text_config))
    with pruned:
        logits = [last_token_logits(adapter.model, inputs).cpu() for inputs in calibration]
    if not logits:
        raise UnsupportedFeatureError("the calibration holds no samples", "give a few inputs")
    together = torch.cat(logits)
    finite = is_distribution(together)
    if not bool(finite.all()):
        where = "unpruned" if layer is None else f"pruned before layer {layer}"
        raise UnsupportedFeatureError(
            f"the model's logits of calibration sample {int((~finite).int().argmax())} hold NaN ({where})",
            "check the weights and the inputs, or use another dtype",
        )
    return together


def compare_trials(
    adapter: Adapter,
    method: Method,
    calibration: Sequence[Mapping[str, Any]],
    trials: Sequence[Trial],
    progress: Progress | None = None,
) -> list[TrialResult]:
    """Race trials of a method on calibration samples; see :class:`tokenprune.selectors.base.TrialResult`.

    Args:
        adapter: The model's adapter.
        method: The method: its budget and positions are those of all trials.
        calibration: Inputs as for ``model(**inputs)``.
        trials: The trials.
        progress: Called after every trial and batch.
    """
    methods = {
        str(number): method.model_copy(update={"layers": Fixed(layers=trial.layers), "pruner": trial.pruner})
        for number, trial in enumerate(trials)
    }

    def steps(name: str, number: int, batches: int) -> None:
        if progress is not None:
            trial = trials[int(name)]
            what = f"before layer {', '.join(map(str, trial.layers))}"
            progress(what, number * len(trials) + int(name) + 1, batches * len(trials))

    counted = distinct(adapter, calibration)
    race = run_race(Bench(adapter, calibration), methods, RaceRules("agreement"), counted=counted, progress=steps)
    results = []
    for name in methods:
        if name in race.refused:
            results.append(TrialResult((), (), float("nan"), race.refused[name]))
            continue
        found = race.fidelity[name]
        results.append(
            TrialResult(tuple(found.agreement.tolist()), tuple(found.divergence.tolist()), float(found.average.mean()))
        )
    return results


def why_unmet(
    adapter: Adapter, budget: Budget, calibration: Sequence[Mapping[str, Any]], layers: tuple[int, ...]
) -> str | None:
    """Why a budget cannot be met on all calibration samples by pruning before the given layers; None if it can."""
    try:
        budget.check(layers)
        for visual, text in sample_sizes(adapter, calibration):
            cost = partial(prefill_cost, adapter.config)(text)
            budget.keep(visual, Schedule(layers, adapter.num_layers, cost))
    except BudgetError as error:
        return error.what
    return None


def sample_sizes(adapter: Adapter, batches: Iterable[Mapping[str, Any]]) -> list[tuple[int, int]]:
    """Visual and text tokens of every sample that has visual tokens; padding does not count."""
    sizes: list[tuple[int, int]] = []
    for inputs in batches:
        layout = adapter.locate(inputs)
        if layout is not None:
            counts = zip(layout.mask.sum(1).tolist(), count_text(inputs, layout.mask), strict=True)
            sizes += [(visual, text) for visual, text in counts if visual]
    return sizes
