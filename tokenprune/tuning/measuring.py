"""The steps of a tune that need its model: samples are read, candidates are made, and measured."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tokenprune.adapters import adapter_for
from tokenprune.budgets.layer_average import LayerAverage
from tokenprune.config import Method
from tokenprune.core.architecture import Architecture
from tokenprune.core.forward_errors import forward_errors
from tokenprune.engine.compiled import eager
from tokenprune.engine.reservation import check_free, reserved
from tokenprune.engine.trials.calibrate import entropy_profile
from tokenprune.engine.trials.race import AskedBatch, Bench, MeasuredOne
from tokenprune.engine.unwrap import unwrap
from tokenprune.fingerprint import fingerprint
from tokenprune.fingerprint.origin import Origin
from tokenprune.models.answer import generate
from tokenprune.models.base import LoadedModel
from tokenprune.models.code import used_code
from tokenprune.models.encode import encode_one
from tokenprune.models.usable import Usable
from tokenprune.selectors.entropy_profile import EntropyProfile
from tokenprune.tasks.base import checked_score
from tokenprune.tasks.trial import try_task
from tokenprune.tuning.budgets import EqualCost, PrefillTime, cost_label
from tokenprune.tuning.candidate_pool import CandidatePool, CandidateSpec, PoolBuilder
from tokenprune.tuning.config import TuneConfig
from tokenprune.tuning.equal_time import equal_time, prefill_clock
from tokenprune.tuning.samples import (
    Counted,
    HostBatches,
    check_budget,
    check_samples,
    different_samples,
    fingerprints,
    read_samples,
)

#: Samples whose entropy curves are measured, at least.
CURVES = 8


@dataclass(frozen=True)
class Facts:
    """What the rest of a tune must know of its model and samples.

    Attributes:
        model: The model, in words.
        architecture: Its architecture.
        origin: Its weights, and versions of code.
        batches: The fingerprint of every batch; None for one that cannot be read.
        counted: The samples that count.
        skipped: Id of every sample that cannot be used -> why.
    """

    model: str
    architecture: Architecture
    origin: Origin
    batches: tuple[str | None, ...]
    counted: Counted
    skipped: Mapping[str, str]


@dataclass(frozen=True)
class Known:
    """What earlier runs of a tune have measured before its races.

    Attributes:
        curves: Entropy curves; None if they are not known.
        times: Layer averages of equal time: label of the budget -> candidate -> average.
    """

    curves: EntropyProfile | None = None
    times: dict[str, dict[str, float]] = field(default_factory=dict)


#: Keeps what is known now.
Keep = Callable[[Known], object]


class TuneSteps(ABC):
    """The steps of a tune that need its model, whoever takes them."""

    @abstractmethod
    def load(self) -> Facts:
        """Load the model, and read the samples.

        Raises:
            TokenPruneError: They cannot be used, or a budget does not fit them.
        """

    @abstractmethod
    def candidates(self, known: Known, keep: Keep) -> list[CandidatePool]:
        """Make the candidates of every budget.

        Args:
            known: What is not measured again.
            keep: Called whenever more is known.

        Raises:
            TokenPruneError: Something named is no candidate.
        """

    @abstractmethod
    def measure(
        self, methods: Mapping[str, Method], asked: Iterable[AskedBatch], count: int
    ) -> Iterator[Sequence[MeasuredOne]]:
        """Measure methods; see :data:`tokenprune.engine.trials.race.Measure`.

        Args:
            methods: The methods by name, with ``fixed`` layers.
            asked: The batches.
            count: How many these are, at most.
        """

    @abstractmethod
    def close(self) -> None:
        """Let go of the model."""


@dataclass
class OwnSteps(TuneSteps):
    """The steps in this process.

    Attributes:
        bench: The model and the samples.
        model: The model, in words.
        budgets: What the candidates may cost.
        named: What the user named as candidates; None for all named methods.
        compositions: With all named methods, also combine scorers and pruners that no named method combines.
        seed: Seed of random candidates.
        skipped: Id of every sample that cannot be used -> why.
        code: Versions of the code of model, task and metric.
    """

    bench: Bench
    model: str
    budgets: Sequence[EqualCost]
    named: Sequence[CandidateSpec] | None
    compositions: bool = True
    seed: int = 0
    skipped: Mapping[str, str] = field(default_factory=dict)
    code: Mapping[str, str | None] = field(default_factory=dict)

    @classmethod
    def of(cls, config: TuneConfig, loaded: LoadedModel | None = None) -> OwnSteps:
        """The steps of a configuration.

        Args:
            config: The tune.
            loaded: Its model, if it is loaded already.

        Raises:
            TokenPruneError: The model cannot be loaded, or no sample can be used.
        """
        loaded = loaded or config.model.load()
        found = read_samples(config.task, loaded, config.samples, config.batch_size, config.strict)
        if config.labels:
            try_task(config.task, found.samples[0][0])
        model = loaded.model
        bench = Bench(
            adapter_for(unwrap(model)),
            HostBatches(found.batches, model.device),
            config.tokens,
            _answer(config, loaded, found) if config.labels else None,
            lambda number: [encode_one(loaded, sample) for sample in found.samples[number]],
            [[sample.id for sample in samples] for samples in found.samples],
        )
        budgets, code = config.all_budgets, used_code(config.model, config.task)
        return cls(bench, loaded.name, budgets, config.methods, config.compositions, config.seed, found.skipped, code)

    def __post_init__(self) -> None:
        self._stack = ExitStack()
        self._sizes: list[tuple[int, int]] = []
        self._counted = Counted([], torch.empty(0), 0)

    def load(self) -> Facts:
        """See :meth:`TuneSteps.load`."""
        adapter, batches = self.bench.adapter, self.bench.batches
        check_free(adapter.decoder)
        self._sizes = check_samples(adapter, batches)
        self._counted = different_samples(adapter, batches, self._sizes)
        for budget in self.budgets:
            check_budget(budget, self._sizes, adapter)
        self._stack.enter_context(eager(adapter.model))
        origin = Origin(fingerprint(adapter.model), self.code)
        prints = tuple(fingerprints(batches))
        return Facts(self.model, adapter.architecture, origin, prints, self._counted, self.skipped)

    def candidates(self, known: Known, keep: Keep) -> list[CandidatePool]:
        """See :meth:`TuneSteps.candidates`."""
        adapter, curves = self.bench.adapter, known.curves
        if curves is None:
            with forward_errors():
                curves = entropy_profile(adapter, self._first(), cache=False)
            known = Known(curves, known.times)
            keep(known)
        pools = [self._pool(budget, curves, known, keep) for budget in self.budgets]
        for pool in pools:
            refused = self.bench.refused({item.name: item.method for item in pool.candidates})
            pool.candidates = [item for item in pool.candidates if item.name not in refused]
            pool.refused |= refused
        return pools

    def measure(
        self, methods: Mapping[str, Method], asked: Iterable[AskedBatch], count: int
    ) -> Iterator[Sequence[MeasuredOne]]:
        """See :meth:`TuneSteps.measure`."""
        with reserved(self.bench.adapter.decoder):
            for item in asked:
                for found in self.bench.measure(item, methods, self._counted.places[item.number]):
                    yield [found]

    def close(self) -> None:
        """See :meth:`TuneSteps.close`."""
        self._stack.close()

    def _pool(self, budget: EqualCost, curves: EntropyProfile, known: Known, keep: Keep) -> CandidatePool:
        adapter, batches = self.bench.adapter, self.bench.batches
        counts, text = [size[0] for size in self._sizes], max(size[1] for size in self._sizes)
        visual = tuple(sorted({min(counts), max(counts)}))
        builder = PoolBuilder(adapter, batches, curves, visual, text, self.seed, isinstance(budget, PrefillTime))
        if not isinstance(budget, PrefillTime):
            return builder.build(budget, self.named, self.compositions)
        found = builder.build(LayerAverage(ratio=1.0), self.named, self.compositions)
        inputs = batches[0]
        found.candidates, slow = equal_time(
            found.candidates,
            budget,
            visual=max(counts[: len(inputs["input_ids"])]),
            num_layers=adapter.num_layers,
            clock=prefill_clock(adapter, inputs),
            known=known.times.setdefault(cost_label(budget), {}),
            remember=lambda: keep(known),
        )
        found.refused |= slow
        return found

    def _first(self) -> list[Mapping[str, Any]]:
        """The first batches: the layers of candidates are chosen by their entropy curves."""
        first, count = [], 0
        for inputs in self.bench.batches:
            first.append(inputs)
            count += len(inputs["input_ids"])
            if count >= CURVES:
                break
        return first


def _answer(config: TuneConfig, loaded: LoadedModel, found: Usable) -> Callable[..., Tensor]:
    """Answers and scores a batch with the model as it is."""

    def answer(number: int, inputs: Mapping[str, Any], place: int | None) -> Tensor:
        samples = found.samples[number] if place is None else [found.samples[number][place]]
        texts = generate(loaded, samples, inputs, config.max_new_tokens).checked().texts
        return torch.tensor([checked_score(config.task, *said) for said in zip(samples, texts, strict=True)])

    return answer
