"""Answers of an experiment: every series answers a batch next to the unpruned model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from torch import Tensor

from tokenprune.engine.trials.divergence import forced_log_probabilities, mean_divergence, not_comparable
from tokenprune.errors import TokenPruneError
from tokenprune.experiment.batches import Batch
from tokenprune.experiment.cost import batch_costs, known_shapes
from tokenprune.experiment.series import Series
from tokenprune.experiment.series_model import SeriesModel, named
from tokenprune.flops.decoder import Shape
from tokenprune.models.answer import Generated, generate
from tokenprune.output.lines import Row
from tokenprune.run import Run
from tokenprune.tasks.base import Sample, checked_score


@dataclass
class BatchInWork:
    """A batch, and what the unpruned model did with it.

    Attributes:
        batch: The batch.
        unpruned: The texts of the unpruned model's answers by position, as far as they are known.
        generated: These answers, once they were generated.
        expected: Log-probabilities of these answers, float32 ``[batch, tokens, vocabulary]``, once they were needed.
        alone: The samples as batches of their own, once they were needed.
    """

    batch: Batch
    unpruned: dict[int, str] = field(default_factory=dict)
    generated: Generated | None = None
    expected: Tensor | None = None
    alone: list[BatchInWork] = field(default_factory=list)


class NoAnswerError(Exception):
    """Some samples of a batch have no answer that means anything. The others do.

    Args:
        failed: Position of each -> why.
    """

    def __init__(self, failed: Mapping[int, TokenPruneError]) -> None:
        super().__init__()
        self.failed = failed


class Answering(SeriesModel):
    """Answers samples with the series of one experiment; arguments as for :class:`SeriesModel`."""

    @cached_property
    def _shapes(self) -> tuple[Shape, ...] | None:
        return known_shapes(self.adapter)

    def answer(self, item: Series, work: BatchInWork, tokens: int | None = None) -> list[Row]:
        """Answer a batch with a series.

        Args:
            item: The series.
            work: The batch.
            tokens: Tokens of an answer at most; those of the experiment by default.

        Raises:
            NoAnswerError: The logits of some samples hold NaN or infinity.
            TokenPruneError: The method cannot run on the batch; the message names both.
            PluginError: The task fails on an answer.
        """
        batch = work.batch
        if self.config.divergence and not item.unpruned:
            self._compute_reference(work, tokens)
        with named(item, batch):
            shown = self.shown(item, batch)
        with named(item, batch), self.running(item, shown) as run:
            generated = self._unpruned(work, tokens) if item.unpruned else self._generate(shown, tokens)
            costs = self._costs(batch, shown, run)  # of this prefill, and not of the next
            if self.config.divergence and not generated.problems:
                divergences = self._divergences(item, work, shown)
                costs = [{"divergence": value} | cost for value, cost in zip(divergences, costs, strict=True)]
        if generated.problems:
            raise NoAnswerError({batch.positions[at]: _with_name(item, why) for at, why in generated.problems.items()})
        if item.unpruned:
            work.unpruned |= dict(zip(batch.positions, generated.texts, strict=True))
        answers = zip(batch.positions, batch.samples, generated.texts, costs, strict=True)
        return [self._answered(item, work, at, sample, text) | cost for at, sample, text, cost in answers]

    def _answered(self, item: Series, work: BatchInWork, position: int, sample: Sample, text: str) -> Row:
        if self.config.task.label_free:
            own = work.unpruned[position]
            sample = replace(sample, answer=own, answers=(own,))
        return {
            "series": item.key,
            "method": item.method_name,
            "budget": item.budget,
            "seed": item.seed,
            "position": position,
            "sample": sample.id,
            "type": sample.type,
            "group": sample.group,
            "answer": sample.answer,
            "prediction": text,
            "score": checked_score(self.config.task, sample, text),
        }

    def _compute_reference(self, work: BatchInWork, tokens: int | None) -> None:
        """Compute what the other series need of the unpruned model, where it was not done for its own rows."""
        unpruned = next(self.config.series())
        if work.expected is None:
            with named(unpruned, work.batch), self.running(unpruned, work.batch):
                work.expected = self._log_probabilities(work.batch, self._unpruned(work, tokens).checked())

    def _unpruned(self, work: BatchInWork, tokens: int | None) -> Generated:
        """The unpruned model's answers, generated once."""
        if work.generated is None:
            work.generated = self._generate(work.batch, tokens)
        return work.generated

    def _generate(self, batch: Batch, tokens: int | None) -> Generated:
        return generate(self.loaded, batch.samples, batch.inputs, tokens or self.config.max_new_tokens)

    def _costs(self, batch: Batch, shown: Batch, run: Run | None) -> list[Row]:
        """The cost of every sample as it was shown; what it costs unpruned is that of the batch as it is."""
        whole = None if shown is batch else batch.inputs
        return batch_costs(self.adapter, self._shapes, self.loaded.model.dtype.itemsize, shown.inputs, run, whole)

    def _divergences(self, item: Series, work: BatchInWork, shown: Batch) -> list[float]:
        """Mean divergence of every sample from the unpruned model, over the tokens of that model's answer."""
        answers = work.generated
        assert answers is not None  # for the series itself, or for its reference
        given = self._log_probabilities(shown, answers)
        if item.unpruned:
            work.expected = given
            return [0.0] * len(given)
        assert work.expected is not None
        divergences: list[float] = mean_divergence(work.expected, given, answers.mask).tolist()
        for sample, value in zip(work.batch.samples, divergences, strict=True):
            if not math.isfinite(value):
                raise not_comparable(f"on sample {sample.id!r}")
        return divergences

    def _log_probabilities(self, batch: Batch, answers: Generated) -> Tensor:
        model: Any = self.loaded.model
        return forced_log_probabilities(model, batch.inputs, answers.ids)


def _with_name(item: Series, error: TokenPruneError) -> TokenPruneError:
    """An error that names its sample, with the name of the method."""
    try:
        with named(item):
            raise error
    except TokenPruneError as found:
        return found
