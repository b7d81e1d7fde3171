"""Finding the best method for a model, for samples and for a budget, without labels."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from tokenprune.adapters import adapter_for
from tokenprune.adapters.base import Adapter
from tokenprune.budgets.layer_average import LayerAverage
from tokenprune.config import Config
from tokenprune.core.forward_errors import forward_errors
from tokenprune.core.notebook import progress_in_notebooks
from tokenprune.core.plugins import registry
from tokenprune.engine.compiled import eager
from tokenprune.engine.reservation import check_free, reserved
from tokenprune.engine.trials.calibrate import Calibration, as_batches, entropy_profile
from tokenprune.engine.trials.fidelity import Fidelity
from tokenprune.engine.trials.measuring import Alone, Answer
from tokenprune.engine.trials.race import Goal, Objective, RaceRules, loss, run_race
from tokenprune.engine.unwrap import unwrap
from tokenprune.errors import ConfigError
from tokenprune.fingerprint import fingerprint
from tokenprune.fingerprint.definition import with_code
from tokenprune.fingerprint.origin import Origin
from tokenprune.models.answer import generate
from tokenprune.models.base import LoadedModel
from tokenprune.models.code import used_code
from tokenprune.models.encode import encode_one
from tokenprune.models.usable import Usable
from tokenprune.selectors.entropy_profile import EntropyProfile
from tokenprune.tasks.base import Task, checked_score
from tokenprune.tasks.trial import try_task
from tokenprune.tuning.budgets import EqualCost, EqualCostBudget, PrefillTime, cost_label
from tokenprune.tuning.candidate_pool import CandidatePool, CandidateSpec, PoolBuilder, as_list
from tokenprune.tuning.config import TuneConfig, TuneRules
from tokenprune.tuning.equal_time import equal_time, prefill_clock
from tokenprune.tuning.ranking import Measured, Ranking, rank
from tokenprune.tuning.result import TuneResult
from tokenprune.tuning.samples import (
    Counted,
    HostBatches,
    check_budget,
    check_samples,
    different_samples,
    fingerprints,
    nothing_dropped,
    read_samples,
)
from tokenprune.tuning.setup import TuneSetup
from tokenprune.tuning.steps import Progress, steps_of
from tokenprune.tuning.store import BudgetRows, TuneStore

#: Samples whose entropy curves are measured, at least.
CURVES = 8


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
    batches = as_batches(samples)
    settings = {"tokens": tokens, "seed": seed, "labels": False}
    name = type(model).__name__
    setup = TuneSetup(name, "the given samples", objective, tokens, error)
    tuning = _Tuning(model, batches, rules, setup, seed, settings, progress)
    return tuning.run([checked.budget], candidates, compositions, output)


@progress_in_notebooks
def run_tune(config: TuneConfig, progress: Progress | None = None, loaded: LoadedModel | None = None) -> TuneResult:
    """Run the tune of a configuration, or continue the one in its output folder, and write its files.

    Args:
        config: The tune.
        progress: Called after every candidate and batch.
        loaded: The tune's model, if it is loaded already.

    Raises:
        TokenPruneError: The configuration is wrong, or no candidate can run.
    """
    if not isinstance(config, TuneConfig):
        raise ConfigError(f"run_tune needs a TuneConfig, got {type(config).__name__}", "use TuneConfig.from_yaml(path)")
    if config.labels and config.task.label_free:
        raise ConfigError("labels: the task has no answers", "leave labels out, or name a task with answers")
    loaded = loaded or config.model.load()
    found = read_samples(config.task, loaded, config.samples, config.batch_size, config.strict)
    goal: Goal = "score" if config.labels else config.objective
    rules = RaceRules(goal, error=config.error, first=config.first, tokens=config.tokens)
    setup = TuneSetup(loaded.name, task_name(config.task), goal, config.tokens, config.error)
    settings = config.settings()
    batches = HostBatches(found.batches, loaded.model.device)
    tuning = _Tuning(loaded.model, batches, rules, setup, config.seed, settings, progress)
    tuning.code = used_code(config.model, config.task)
    tuning.alone = lambda number: [encode_one(loaded, sample) for sample in found.samples[number]]
    if config.labels:
        try_task(config.task, found.samples[0][0])
        tuning.answer = _answer(config, loaded, found)
    tuning.skipped = found.skipped
    tuning.names = [[sample.id for sample in samples] for samples in found.samples]
    return tuning.run(config.all_budgets, config.methods, config.compositions, config.output)


def task_name(task: Task) -> str:
    """A task in a few words: its name, and what it reads."""
    name = registry("tasks").name_of(type(task))
    data = getattr(task, "data", None)
    return f"{name} ({data})" if isinstance(data, str) else name


def _answer(config: TuneConfig, loaded: LoadedModel, found: Usable) -> Answer:
    """Answers and scores a batch with the model as it is."""

    def answer(number: int, inputs: Mapping[str, Any], place: int | None) -> Tensor:
        samples = found.samples[number] if place is None else [found.samples[number][place]]
        texts = generate(loaded, samples, inputs, config.max_new_tokens).checked().texts
        return torch.tensor([checked_score(config.task, *said) for said in zip(samples, texts, strict=True)])

    return answer


@dataclass
class _Tuning:
    """One tune: everything but its budgets and candidates.

    Attributes:
        model: The model.
        batches: The samples.
        rules: How the race goes.
        setup: What the reports say.
        seed: The seed.
        settings: What must be equal to go on in a folder.
        progress: Called after every candidate and batch.
        answer: Answers and scores a batch; None without labels.
        alone: Makes the inputs of the samples of a batch alone; None where nobody can.
        skipped: Id of every sample that cannot be used -> why.
        names: Ids of the samples of each batch, for errors; None where they have none.
        code: Versions of the code of model, task and metric.
    """

    model: nn.Module
    batches: Sequence[Mapping[str, Any]]
    rules: RaceRules
    setup: TuneSetup
    seed: int
    settings: Mapping[str, Any]
    progress: Progress | None = None
    answer: Answer | None = None
    alone: Alone | None = None
    skipped: Mapping[str, str] = field(default_factory=dict)
    names: Sequence[Sequence[str]] | None = None
    code: Mapping[str, str | None] = field(default_factory=dict)

    def run(
        self,
        budgets: Sequence[EqualCost],
        candidates: Iterable[CandidateSpec] | None,
        compositions: bool,
        output: str | Path | None,
    ) -> TuneResult:
        adapter = adapter_for(unwrap(self.model))
        check_free(adapter.decoder)
        sizes = check_samples(adapter, self.batches)
        counted = different_samples(adapter, self.batches, sizes)
        for budget in budgets:
            check_budget(budget, sizes, adapter)
        named = None if candidates is None else as_list(candidates)
        with ExitStack() as stack:
            stack.enter_context(eager(self.model))
            store = None
            if output is not None:
                store = TuneStore(output)
                stack.enter_context(store.locked())
                origin = Origin(fingerprint(adapter.model), self.code)
                store.claim_tune(self.settings, origin, fingerprints(self.batches))
            start = time.perf_counter()
            rankings = []
            # all candidates are made before the first race: one that is misspelled is found at once
            pools = [self._candidates(adapter, budget, named, compositions, sizes, store) for budget in budgets]
            for number, (budget, found) in enumerate(zip(budgets, pools, strict=True)):
                names = [candidate.name for candidate in found.candidates]
                show = steps_of(self.progress, number, len(budgets), cost_label(budget), names)
                rankings.append(self._race(adapter, budget, found, counted, store, show))
            setup = replace(self.setup, seconds=time.perf_counter() - start, copies=counted.copies)
            folder = None if store is None else str(store.folder)
            result = TuneResult(tuple(rankings), setup, folder, self.skipped)
            if store is not None:
                result = replace(result, written=tuple(result.write(store)))
        return result

    def _candidates(
        self,
        adapter: Adapter,
        budget: EqualCost,
        named: list[CandidateSpec] | None,
        compositions: bool,
        sizes: Sequence[tuple[int, int]],
        store: TuneStore | None,
    ) -> CandidatePool:
        curves = self._curves(adapter, store)
        counts, text = [size[0] for size in sizes], max(size[1] for size in sizes)
        visual = tuple(sorted({min(counts), max(counts)}))
        builder = PoolBuilder(adapter, self.batches, curves, visual, text, self.seed, isinstance(budget, PrefillTime))
        if not isinstance(budget, PrefillTime):
            return builder.build(budget, named, compositions)
        found = builder.build(LayerAverage(ratio=1.0), named, compositions)
        stored = (store.read_json("times.json") if store is not None else None) or {}
        known: dict[str, float] = stored.setdefault(cost_label(budget), {})
        inputs = self.batches[0]
        found.candidates, slow = equal_time(
            found.candidates,
            budget,
            visual=max(visual for visual, _ in sizes[: len(inputs["input_ids"])]),
            num_layers=adapter.num_layers,
            clock=prefill_clock(adapter, inputs),
            known=known,
            remember=lambda: None if store is None else store.write_json("times.json", stored),
        )
        found.refused |= slow
        return found

    def _curves(self, adapter: Adapter, store: TuneStore | None) -> EntropyProfile:
        """Entropy curves of the first samples, measured once per tune: layers of candidates are chosen by them."""
        path = None if store is None else store.folder / "entropy.json"
        if path is not None and path.is_file():
            with suppress(ConfigError):  # a damaged file is measured again
                return EntropyProfile.load(path)
        first, count = [], 0
        for inputs in self.batches:
            first.append(inputs)
            count += len(inputs["input_ids"])
            if count >= CURVES:
                break
        with forward_errors():
            curves = entropy_profile(adapter, first, cache=False)
        if path is not None:
            curves.save(path)
        return curves

    def _race(
        self,
        adapter: Adapter,
        budget: EqualCost,
        found: CandidatePool,
        counted: Counted,
        store: TuneStore | None,
        show: Progress,
    ) -> Ranking:
        label = cost_label(budget)
        methods = {candidate.name: candidate.method for candidate in found.candidates}
        dumped = {name: method.model_dump(mode="json", exclude={"label"}) for name, method in methods.items()}
        definitions = with_code(dumped, methods)
        rows = BudgetRows(label) if store is None else store.rows(label, definitions)
        with reserved(adapter.decoder):
            race = run_race(
                adapter,
                self.batches,
                methods,
                self.rules,
                log=rows,
                progress=show,
                answer=self.answer,
                alone=self.alone,
                names=self.names,
                counted=counted.places,
            )
        if race.fidelity and not any(_drops(item, counted.visual) for item in race.fidelity.values()):
            raise nothing_dropped(label)
        measured = [
            Measured(
                item.name,
                item.origin,
                item.method.model_copy(update={"tuned_for": adapter.architecture}),
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
