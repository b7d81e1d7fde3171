"""Finding the best method for a model, for samples and for a budget, without labels."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from torch import Tensor, nn

from tokenprune.adapters import adapter_for
from tokenprune.config import Config
from tokenprune.core.notebook import progress_in_notebooks
from tokenprune.core.plugins import registry
from tokenprune.engine.trials.calibrate import Calibration, as_batches
from tokenprune.engine.trials.fidelity import Fidelity
from tokenprune.engine.trials.race import Bench, Goal, Objective, RaceRules, judge, loss
from tokenprune.engine.unwrap import unwrap
from tokenprune.errors import ConfigError
from tokenprune.executors.base import Crew, Executor
from tokenprune.executors.remote import remove_scratch
from tokenprune.fingerprint.definition import with_code
from tokenprune.models.base import LoadedModel
from tokenprune.tasks.base import Task
from tokenprune.tuning.budgets import EqualCost, EqualCostBudget, cost_label
from tokenprune.tuning.candidate_pool import CandidatePool, CandidateSpec, as_list
from tokenprune.tuning.config import TuneConfig, TuneRules
from tokenprune.tuning.measuring import Facts, Known, OwnSteps, TuneSteps
from tokenprune.tuning.ranking import Measured, Ranking, rank
from tokenprune.tuning.remote import RemoteSteps
from tokenprune.tuning.result import TuneResult
from tokenprune.tuning.samples import nothing_dropped
from tokenprune.tuning.setup import TuneSetup
from tokenprune.tuning.steps import Progress, steps_of
from tokenprune.tuning.store import BudgetRows, TuneStore


class _Arguments(TuneRules, Config):
    """The arguments of :func:`tune` that are checked as in a file."""

    budget: Annotated[EqualCost, EqualCostBudget()]


@progress_in_notebooks
def tune(
    model: nn.Module,
    samples: Calibration,
    budget: EqualCost | Mapping[str, Any],
    candidates: Iterable[CandidateSpec] | None = None,
    *,
    objective: Objective = "root_divergence",
    error: float = 0.05,
    tokens: int = 1,
    first: int = 8,
    compositions: bool = True,
    seed: int = 0,
    output: str | Path | None = None,
    progress: Progress | None = None,
) -> TuneResult:
    """Find the method whose answers stay closest to the unpruned model's at a given cost. It needs no labels.

    All candidates run on the first samples; those that are clearly worse leave, the others see more. Random tokens
    before the same layers are always among them, so that the result says whether anything beats chance.

    Args:
        model: A supported transformers model. It is not changed.
        samples: Inputs as for ``model(**inputs)``: a list of samples or batches, each about another picture; 64 samples
            tell most methods apart.
        budget: What every candidate may cost: ``layer_average`` or ``flops_reduction`` (an instance, or a mapping with
            ``name``), or ``{"name": "prefill_time", "ratio": 0.5}``.
        candidates: Names of methods, :class:`tokenprune.Method` objects, or candidates; None for all that the model
            can serve.
        objective: What is compared: ``root_divergence``, ``agreement``, ``divergence`` or ``distance``; see
            :class:`TuneConfig`.
        error: Probability that the race drops its best candidate.
        tokens: Tokens of the unpruned model's answer that are compared.
        first: Samples that all candidates see before some may leave.
        compositions: Without ``candidates``, also combine scorers and pruners that no named method combines.
        seed: Seed of the bootstrap and of random candidates.
        output: Folder of the results; a tune in it that was stopped goes on. None writes nothing.
        progress: Called after every candidate and batch; None shows a bar in a notebook.

    Raises:
        TokenPruneError: The samples or the budget do not fit the model, or no candidate can run.
    """
    numbers = {"error": error, "tokens": tokens, "first": first, "seed": seed}
    checked = _Arguments.from_dict({"budget": budget, "objective": objective, **numbers}, "tune")
    rules = RaceRules(objective, error=error, first=first, tokens=tokens)
    bench = Bench(adapter_for(unwrap(model)), as_batches(samples), tokens)
    named = None if candidates is None else as_list(candidates)
    steps = OwnSteps(bench, type(model).__name__, [checked.budget], named, compositions, seed)
    settings = {"tokens": tokens, "seed": seed, "labels": False}
    tuning = _Tuning([checked.budget], rules, "the given samples", seed, settings, progress)
    return tuning.run(lambda _: steps, output)


@progress_in_notebooks
def run_tune(
    config: TuneConfig,
    progress: Progress | None = None,
    loaded: LoadedModel | None = None,
    executor: Executor | Mapping[str, Any] | str | None = None,
    workers: int | None = None,
) -> TuneResult:
    """Run the tune of a configuration, or continue the one in its output folder, and write its files.

    Args:
        config: The tune.
        progress: Called after every candidate and batch.
        loaded: The tune's model, if it is loaded already; workers load it themselves.
        executor: Starts the workers that share the measuring; as for :func:`tokenprune.run_experiment`. The files are
            the same, but for times, and for a budget in time, which is measured.
        workers: How many workers there are; None leaves it to the executor.

    Raises:
        TokenPruneError: The configuration is wrong, no candidate can run, or workers fail.
    """
    if not isinstance(config, TuneConfig):
        raise ConfigError(f"run_tune needs a TuneConfig, got {type(config).__name__}", "use TuneConfig.from_yaml(path)")
    if config.labels and config.task.label_free:
        raise ConfigError("labels: the task has no answers", "leave labels out, or name a task with answers")
    crew = Crew.of(executor, workers)
    goal: Goal = "score" if config.labels else config.objective
    rules = RaceRules(goal, error=config.error, first=config.first, tokens=config.tokens)
    name, workers_used = task_name(config.task), crew is not None
    tuning = _Tuning(config.all_budgets, rules, name, config.seed, config.settings(), progress, workers_used)

    def steps(store: TuneStore | None) -> TuneSteps:
        return OwnSteps.of(config, loaded) if crew is None or store is None else RemoteSteps(crew, config, store)

    return tuning.run(steps, config.output)


def task_name(task: Task) -> str:
    """A task in a few words: its name, and what it reads."""
    name = registry("tasks").name_of(type(task))
    data = getattr(task, "data", None)
    return f"{name} ({data})" if isinstance(data, str) else name


@dataclass
class _Tuning:
    """One tune: everything but what needs its model.

    Attributes:
        budgets: What the candidates may cost.
        rules: How the race goes.
        data: The samples, in words.
        seed: The seed.
        settings: What must be equal to go on in a folder.
        progress: Called after every candidate and batch.
        workers: Whether several workers measure.
        races: Per budget its candidates, and those that failed.
    """

    budgets: Sequence[EqualCost]
    rules: RaceRules
    data: str
    seed: int
    settings: Mapping[str, Any]
    progress: Progress | None = None
    workers: bool = False
    races: dict[str, tuple[list[str], dict[str, int]]] = field(default_factory=dict)

    def run(self, make: Callable[[TuneStore | None], TuneSteps], output: str | Path | None) -> TuneResult:
        """Race the candidates of each budget.

        Args:
            make: Makes the steps that need the model, for a folder that is locked.
            output: The folder; None writes nothing.
        """
        store = None if output is None else TuneStore(output)
        with ExitStack() as stack:
            if store is not None:
                stack.enter_context(store.locked())
                remove_scratch(store)
            steps = make(store)
            stack.callback(steps.close)
            return self._run(steps, store)

    def _run(self, steps: TuneSteps, store: TuneStore | None) -> TuneResult:
        facts = steps.load()
        if store is not None:
            store.claim_tune(self.settings, facts.origin, facts.batches)
            if self.workers:
                store.begin_unordered()
        start = time.perf_counter()
        # all candidates are made before the first race: one that is misspelled is found at once
        known = Known() if store is None else store.known()
        pools = steps.candidates(known, (lambda _: None) if store is None else store.keep)
        rankings = []
        for number, (budget, found) in enumerate(zip(self.budgets, pools, strict=True)):
            names = [candidate.name for candidate in found.candidates]
            show = steps_of(self.progress, number, len(self.budgets), cost_label(budget), names)
            rankings.append(self._race(steps, facts, cost_label(budget), found, store, show))
        if store is not None:
            store.put_in_order(self.races)
        goal, tokens, error = self.rules.goal, self.rules.tokens, self.rules.error
        seconds = time.perf_counter() - start
        setup = TuneSetup(facts.model, self.data, goal, tokens, error, seconds, facts.counted.copies)
        folder = None if store is None else str(store.folder)
        result = TuneResult(tuple(rankings), setup, folder, facts.skipped)
        return result if store is None else replace(result, written=tuple(result.write(store)))

    def _race(
        self, steps: TuneSteps, facts: Facts, label: str, found: CandidatePool, store: TuneStore | None, show: Progress
    ) -> Ranking:
        methods = {candidate.name: candidate.method for candidate in found.candidates}
        dumped = {name: method.model_dump(mode="json", exclude={"label"}) for name, method in methods.items()}
        definitions = with_code(dumped, methods)
        rows = BudgetRows(label) if store is None else store.rows(label, definitions)
        measure = partial(steps.measure, methods)
        race = judge(list(methods), self.rules, facts.counted.places, measure, rows, show)
        self.races[label] = (list(methods), race.failed)
        if race.fidelity and not any(_drops(item, facts.counted.visual) for item in race.fidelity.values()):
            raise nothing_dropped(label)
        measured = [
            Measured(
                item.name,
                item.origin,
                item.method.model_copy(update={"tuned_for": facts.architecture}),
                race.fidelity[item.name],
                loss(race.fidelity[item.name], self.rules.goal),
                race.left.get(item.name),
            )
            for item in found.candidates
            if item.name in race.fidelity
        ]
        return rank(label, measured, found.refused | race.refused, race.samples, self.rules.goal, self.seed)


def _drops(fidelity: Fidelity, visual: Tensor) -> bool:
    """Whether a candidate dropped tokens of a sample.

    Args:
        fidelity: What it did to the samples that it saw.
        visual: Visual tokens of all samples, ``[samples]``.
    """
    return bool((fidelity.average < visual[: len(fidelity)] - 1e-3).any())
