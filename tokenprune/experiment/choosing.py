"""Before the first answer: the layers of every method are chosen, tunes run, and every method is tried out once."""

from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from tokenprune.budgets.base import Budget, Schedule
from tokenprune.core.component_errors import component_errors
from tokenprune.errors import BudgetError, SampleError, TokenPruneError
from tokenprune.experiment.answering import Answering, BatchInWork, NoAnswerError
from tokenprune.experiment.batches import Batch
from tokenprune.experiment.checks import raise_first
from tokenprune.experiment.config import ExperimentConfig
from tokenprune.experiment.series import Series
from tokenprune.experiment.series_model import SeriesModel, named
from tokenprune.experiment.tuned import TUNED, chosen_method, verdict
from tokenprune.flops.decoder import prefill_cost
from tokenprune.models.base import LoadedModel
from tokenprune.models.usable import usable
from tokenprune.output.folder import OutputFolder
from tokenprune.run import choose_layers, chosen
from tokenprune.selectors.fixed import Fixed
from tokenprune.tuning import TuneConfig, run_tune
from tokenprune.tuning.steps import Progress

#: Tokens of the answers that are tried out: a prefill, and a step behind it.
TRIED_TOKENS = 2
#: Why smaller pictures have no layer.
SMALLER = "the pictures are smaller, and no layer drops tokens"
#: Series key -> the layers, and the reason for the choice.
Choices = dict[str, dict[str, Any]]


def calibration(config: ExperimentConfig, loaded: LoadedModel) -> list[Mapping[str, Tensor]] | None:
    """Inputs of a few samples of different images; None if none are asked for.

    See :meth:`tokenprune.tasks.base.Task.calibration`.

    Samples that the model cannot encode or run are passed over, unless there are no others.
    """
    if config.calibration == 0:
        return None
    with component_errors("tasks", config.task, "calibration(count)"):
        samples = list(config.task.calibration(config.calibration))
    found = usable(loaded, samples, 1, config.strict)
    if found.skipped and not found.batches:
        raise SampleError(
            f"no picture can be used for the calibration; the first: {next(iter(found.skipped.values()))}"
        )
    return found.batches


def choose_series_layers(
    model: SeriesModel, series: Sequence[Series], images: int, known: Container[str] = ()
) -> Choices:
    """Choose the layers of every series that states its method, and check that its budget can be met.

    Smaller pictures need no layer: the choice says so.

    Args:
        model: The model; it gets the methods with these layers.
        series: The series.
        images: Images per sample.
        known: Keys of the series whose layers need no calibration.

    Raises:
        TokenPruneError: A method or budget does not fit the model.
    """
    stated = [(item, item.method) for item in series if item.method is not None]
    measured = any(item.key not in known for item, _ in stated)
    inputs = calibration(model.config, model.loaded) if measured else None
    choices: Choices = {}
    visual = (model.loaded.visual_tokens or 0) * images  # 0 where it is unknown
    for item in series:
        if item.downsampled is not None:
            with named(item):
                _check_count(item, item.downsampled.budget, visual)
            choices[item.key] = {"layers": [], "reason": SMALLER}
    for item, method in stated:
        with named(item):
            choice = choose_layers(model.loaded.model, method, inputs)
            if visual:
                _check_count(item, method.budget, visual)
                # text lowers the reduction: without it, it is the largest
                cost = prefill_cost(model.adapter.config, 0)
                method.budget.keep(visual, Schedule(choice.layers, model.adapter.num_layers, cost))
        choices[item.key] = {"layers": list(choice.layers), "reason": choice.reason}
        fixed = chosen(method, choice).model_copy(update={"layers": Fixed(layers=choice.layers)})
        if choice.pruner is not None:
            choices[item.key]["pruner"] = fixed.model_dump(mode="json")["pruner"]
        if choice.promise is not None:
            choices[item.key]["promise"] = choice.promise.model_dump()
        model.methods[item.key] = fixed
    return choices


def _check_count(item: Series, budget: Budget, visual: int) -> None:
    """Check that a budget asks for no more tokens than a sample has, where that number is known.

    Raises:
        BudgetError: It does.
    """
    if visual and (budget.largest_count or 0) > visual:
        raise BudgetError(
            f"budget '{item.budget}' asks for more than the {visual} visual tokens of a sample",
            f"ask for 1 to {visual}",
        )


def tune_series(
    model: SeriesModel, item: Series, output: Path, kept: Mapping[str, Any] | None, progress: Progress | None = None
) -> dict[str, Any]:
    """Let a tune choose the method of a series.

    Args:
        model: The model; it gets the method.
        item: The series.
        output: Folder of the experiment.
        kept: The choice of an earlier run, which is then followed; None tunes, or goes on with the tune.
        progress: Called after every candidate and batch.

    Returns:
        The choice.

    Raises:
        TokenPruneError: The tune cannot run.
    """
    assert item.tune is not None
    with named(item):
        found = (kept or {}).get(TUNED)
        if found is None:
            experiment = model.config
            folder = item.tune.folder(output, item.method_name)
            config = TuneConfig(
                model=experiment.model,
                task=experiment.task,
                batch_size=OutputFolder(folder)
                .config()
                .get("batch_size", experiment.batch_size),  # a tune keeps its own
                strict=experiment.strict,
                output=str(folder),
                **item.tune.fields(),
            )
            found = verdict(run_tune(config, progress, model.loaded))
        method = chosen_method(found, item.method_name)
    model.methods[item.key] = method
    assert isinstance(method.layers, Fixed)
    return {"layers": list(method.layers.layers), "reason": f"a tune chose {found['name']}", TUNED: found}


def try_out(model: Answering, series: Sequence[Series], batch: Batch) -> None:
    """Let every series answer one sample, so that what cannot run is found before the first answer.

    The answer is cut after two tokens, and scored: so the model's way to write, the method and the task's rule have all
    run. See :data:`TRIED_TOKENS`.

    Args:
        model: The model.
        series: The series.
        batch: The sample.

    Raises:
        TokenPruneError: Some cannot run; the message names all of them.
    """
    failed: dict[str, TokenPruneError] = {}
    if not series:
        return
    work = BatchInWork(batch)
    tokens = min(TRIED_TOKENS, model.config.max_new_tokens)
    unpruned = next(model.config.series())
    model.answer(unpruned, work, tokens)  # where the task has no answers, it says what is right
    for item in series:
        try:
            if not item.unpruned:
                model.answer(item, work, tokens)
        except NoAnswerError as error:
            failed.setdefault(item.method_name, next(iter(error.failed.values())))
        except TokenPruneError as error:
            failed.setdefault(item.method_name, error)
    raise_first(failed)
