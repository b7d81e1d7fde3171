"""The loaded model of an experiment: it chooses layers, tries every series out, answers batches and takes times."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tokenprune.adapters import adapter_for
from tokenprune.budgets.base import Schedule
from tokenprune.config import Method
from tokenprune.engine.trials.divergence import answer_mask, forced_log_probabilities, mean_divergence, not_comparable
from tokenprune.engine.trials.features import SharedFeatures
from tokenprune.errors import (
    BudgetError,
    ConfigError,
    PluginError,
    SampleError,
    TokenPruneError,
    UnsupportedFeatureError,
)
from tokenprune.experiment.batches import Batch
from tokenprune.experiment.config import ExperimentConfig
from tokenprune.experiment.cost import sample_cost
from tokenprune.experiment.series import Series
from tokenprune.experiment.tuned import TUNED, chosen_method, verdict
from tokenprune.files.lines import Row
from tokenprune.fingerprint import fingerprint
from tokenprune.fingerprint.origin import Origin
from tokenprune.flops.decoder import prefill_cost
from tokenprune.models.answer import Generated, check_prompt_logits, generate
from tokenprune.models.base import LoadedModel
from tokenprune.models.encode import encode
from tokenprune.models.processor import processor_fingerprint
from tokenprune.pictures.look import Look
from tokenprune.run import Run, apply, choose_layers, chosen
from tokenprune.selectors.fixed import Fixed
from tokenprune.tasks.base import Sample, checked_score, foreground_tokens, sample_pictures
from tokenprune.tuning.steps import Progress

#: Series key -> the layers, and the reason for the choice.
Choices = dict[str, dict[str, Any]]


def calibration(config: ExperimentConfig, loaded: LoadedModel) -> list[Mapping[str, Tensor]] | None:
    """Inputs of a few samples of different images (see :meth:`Task.calibration`); None if none are asked for.

    Samples that the model cannot encode are passed over, unless there are no others.
    """
    if config.calibration == 0:
        return None
    batches = [encode(loaded, {0: sample}, config.strict) for sample in config.task.calibration(config.calibration)]
    good = [inputs for inputs, refused in batches if not refused]
    if batches and not good:
        raise SampleError(f"no picture can be used for the calibration; the first: {batches[0][1][0]}")
    return good


@dataclass
class BatchInWork:
    """A batch, and what the unpruned model did with it.

    Attributes:
        batch: The batch.
        unpruned: The unpruned model's answers by position, as far as they are known.
        generated: The same as ids, once they were generated.
        reference: The ids of the unpruned model's answers and their log-probabilities, once they were needed.
    """

    batch: Batch
    unpruned: dict[int, str] = field(default_factory=dict)
    generated: Generated | None = None
    reference: tuple[Tensor, Tensor] | None = None


class Answering:
    """Answers samples with the series of one experiment.

    Args:
        config: The experiment.
        loaded: Its model.
    """

    def __init__(self, config: ExperimentConfig, loaded: LoadedModel) -> None:
        self.config, self.loaded = config, loaded
        self.adapter = adapter_for(loaded.model)
        self.methods: dict[str, Method] = {}  # by series key, with fixed layers: a selector that searches runs once
        self._features = SharedFeatures(loaded.model)

    # ---- before the first answer ----

    def origin(self, code: Mapping[str, str | None]) -> Origin:
        """What answers are made with: the weights, the processor, and versions of the code of components."""
        processor = processor_fingerprint(self.loaded.processor)
        return Origin(fingerprint(self.adapter.model), {**code, "processor": processor})

    def choose_layers(self, series: Sequence[Series], images: int) -> Choices:
        """Choose the layers of every series that states its method, and check that its budget can be met.

        Args:
            series: The series.
            images: Images per sample.

        Raises:
            TokenPruneError: A method or budget does not fit the model.
        """
        stated = [item for item in series if item.method is not None]
        inputs = calibration(self.config, self.loaded) if stated else None
        choices = {}
        for item in stated:
            assert item.method is not None
            with named(item):
                choice = choose_layers(self.loaded.model, item.method, inputs)
                if self.loaded.visual_tokens is not None and images:
                    visual = self.loaded.visual_tokens * images
                    if (item.method.budget.largest_count or 0) > visual:
                        raise BudgetError(
                            f"budget '{item.budget}' asks for more than the {visual} visual tokens of a sample",
                            f"ask for 1 to {visual}",
                        )
                    # text lowers the reduction: without it, it is the largest
                    cost = prefill_cost(self.adapter.config, 0)
                    item.method.budget.keep(visual, Schedule(choice.layers, self.adapter.num_layers, cost))
            choices[item.key] = {"layers": list(choice.layers), "reason": choice.reason}
            fixed = chosen(item.method, choice).model_copy(update={"layers": Fixed(layers=choice.layers)})
            if choice.pruner is not None:
                choices[item.key]["pruner"] = fixed.model_dump(mode="json")["pruner"]
            self.methods[item.key] = fixed
        return choices

    def tune(self, item: Series, output: Path, kept: Mapping[str, Any] | None, progress: Progress) -> dict[str, Any]:
        """Let a tune choose the method of a series.

        Args:
            item: The series.
            output: Folder of the experiment, or of its shard.
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
                config = self.config
                result = item.tune.run(
                    config.model,
                    self.loaded,
                    config.task,
                    config.batch_size,
                    config.strict,
                    item.tune.folder(output, item.title),
                    lambda name, done, total: progress(f"tune: {name}", done, total),
                )
                found = verdict(result)
            method = chosen_method(found, item.title)
        self.methods[item.key] = method
        assert isinstance(method.layers, Fixed)
        return {"layers": list(method.layers.layers), "reason": f"a tune chose {found['name']}", TUNED: found}

    def try_out(self, series: Sequence[Series], batch: Batch) -> None:
        """Run every method's prefill once, so that one that cannot run is found before the first answer.

        The unpruned model has run then: see :meth:`check_usable`.

        Raises:
            TokenPruneError: Some cannot run; the message names all of them.
        """
        failed: list[tuple[Series, TokenPruneError]] = []
        for item in series:
            if item.unpruned:
                continue
            try:
                with named(item), self._sharing(item):
                    self.prefill_seconds(item, batch)
            except TokenPruneError as error:
                failed.append((item, error))
        if not failed:
            return
        first = failed[0][1]
        titles = list(dict.fromkeys(item.title for item, _ in failed))
        if len(titles) == 1:
            raise first
        others = f"also failed: {', '.join(titles[1:])}"
        raise type(first)(first.what, f"{first.fix}; {others}" if first.fix else others) from first

    # ---- answers ----

    def answer(self, item: Series, work: BatchInWork) -> list[Row]:
        """Answer a batch with a series.

        Raises:
            TokenPruneError: The method cannot run on the batch; the message names both.
        """
        with named(item, work.batch), self._applied(item, work.batch) as run, self._sharing(item):
            generated = self._unpruned(work) if item.unpruned else self._generate(work.batch)
            generated.check()
            ids = generated.ids
            costs = self._costs(work.batch, run)  # of this prefill, and not of the next
            divergences = self._divergences(item, work, ids) if self.config.divergence else None
        return self._rows(item, work, ids, costs, divergences)

    def _rows(
        self, item: Series, work: BatchInWork, ids: Tensor, costs: list[Row], divergences: list[float] | None
    ) -> list[Row]:
        batch = work.batch
        texts = dict(zip(batch.positions, self.loaded.decode(ids), strict=True))
        if item.unpruned:
            work.unpruned = texts
        rows: list[Row] = []
        for index, (position, sample) in enumerate(zip(batch.positions, batch.samples, strict=True)):
            if self.config.task.label_free:
                own = work.unpruned[position]
                sample = replace(sample, answer=own, answers=(own,))
            row: Row = {
                "series": item.key,
                "method": item.title,
                "budget": item.budget,
                "seed": item.seed,
                "position": position,
                "sample": sample.id,
                "type": sample.type,
                "group": sample.group,
                "answer": sample.answer,
                "prediction": texts[position],
                "score": checked_score(self.config.task, sample, texts[position]),
            }
            if divergences is not None:
                row["divergence"] = divergences[index]
            rows.append(row | costs[index])
        return rows

    def without_answer(self, work: BatchInWork) -> dict[int, str]:
        """Position of every sample that the unpruned model cannot answer, as its logits hold NaN -> why.

        Raises:
            TokenPruneError: The model fails on the batch.
        """
        unpruned = next(self.config.series())
        with named(unpruned, work.batch), self._sharing(unpruned):
            problems = self._unpruned(work).problems
        return {work.batch.positions[place]: f"the unpruned model: {why}" for place, why in problems.items()}

    def check_usable(self, batch: Batch) -> None:
        """Check that the unpruned model can answer a batch: that its logits are finite behind the prompts.

        Raises:
            SampleError: They are not.
            TokenPruneError: The model fails on the batch.
        """
        unpruned = next(self.config.series())
        try:
            with named(unpruned), self._sharing(unpruned):
                self.prefill_seconds(unpruned, batch)
        except UnsupportedFeatureError as error:
            raise SampleError(error.what, error.fix) from error

    def _unpruned(self, work: BatchInWork) -> Generated:
        """What the unpruned model answers, generated once."""
        if work.generated is None:
            work.generated = self._generate(work.batch)
        return work.generated

    def _generate(self, batch: Batch) -> Generated:
        return generate(self.loaded, batch.samples, batch.inputs, self.config.max_new_tokens)

    def _costs(self, batch: Batch, run: Run | None) -> list[Row]:
        size, inputs = self.loaded.model.dtype.itemsize, batch.inputs
        count = len(batch.samples)
        padding = (inputs["attention_mask"] == 0).sum(1).tolist() if "attention_mask" in inputs else [0] * count
        return [sample_cost(self.adapter, size, inputs, run, index, int(padding[index])) for index in range(count)]

    def _divergences(self, item: Series, work: BatchInWork, ids: Tensor) -> list[float]:
        """Mean divergence of every sample from the unpruned model, over the tokens of that model's answer."""
        model: Any = self.loaded.model
        if item.unpruned:
            work.reference = ids, forced_log_probabilities(model, work.batch.inputs, ids)
            return [0.0] * len(ids)
        assert work.reference is not None
        answers, expected = work.reference
        mask = answer_mask(answers, model.generation_config.eos_token_id)
        given = forced_log_probabilities(model, work.batch.inputs, answers)
        divergences: list[float] = mean_divergence(expected, given, mask).tolist()
        for sample, value in zip(work.batch.samples, divergences, strict=True):
            if not math.isfinite(value):
                raise not_comparable(f"on sample {sample.id!r}")
        return divergences

    def refer(self, work: BatchInWork) -> None:
        """Compute what the other series need of the unpruned model, where its own rows are there already."""
        if self.config.divergence and work.reference is None:
            with self._features.enabled():
                ids = self._unpruned(work).ids
                work.reference = ids, forced_log_probabilities(self.loaded.model, work.batch.inputs, ids)

    # ---- pictures ----

    @torch.no_grad()
    def look(self, item: Series, batch: Batch) -> Look:
        """What a method keeps of a single sample, and where it lies on the sample's pictures.

        Raises:
            TokenPruneError: The method cannot run on the sample, or its tokens cannot be put on its pictures.
        """
        with named(item, batch), self._applied(item, batch) as run, self._sharing(item):
            assert run is not None
            self.loaded.model(**batch.inputs, use_cache=True, logits_to_keep=1)
            return run.look(sample_pictures(batch.samples[0]), self.loaded.processor)

    # ---- times ----

    def time(self, series: Sequence[Series], batch: Batch, progress: Callable[[int], None]) -> dict[str, list[float]]:
        """Prefill times divided by that of the unpruned model in the same round, so that drift cancels out.

        Returns:
            Series key -> one ratio per round.
        """
        ratios: dict[str, list[float]] = {item.key: [] for item in series[1:]}
        for number in range(-1, self.config.timing):  # round -1 warms up
            unpruned = self.prefill_seconds(series[0], batch)
            for item in series[1:]:
                ratio = self.prefill_seconds(item, batch) / unpruned
                if number >= 0:
                    ratios[item.key].append(ratio)
            progress(number + 2)
        return ratios

    @torch.no_grad()
    def prefill_seconds(self, item: Series, batch: Batch) -> float:
        """Seconds of a prefill.

        Raises:
            UnsupportedFeatureError: Its logits hold NaN or infinity.
        """
        with self._applied(item, batch):
            self._wait()
            start = time.perf_counter()
            output = self.loaded.model(**batch.inputs, use_cache=True, logits_to_keep=1)
            self._wait()
            seconds = time.perf_counter() - start
        check_prompt_logits(output.logits, batch.samples)
        return seconds

    def _wait(self) -> None:
        if self.loaded.model.device.type == "cuda":
            torch.cuda.synchronize()

    # ---- a method on the model ----

    def _sharing(self, item: Series) -> AbstractContextManager[None]:
        """Reuses the features of the last pixels. A pruner that reads the tower's layers needs the tower to run."""
        reads_tower = not item.unpruned and bool(self.methods[item.key].pruner.vision_layers)
        return nullcontext() if reads_tower else self._features.enabled()

    @contextmanager
    def _applied(self, item: Series, batch: Batch) -> Iterator[Run | None]:
        if item.unpruned:
            yield None
            return
        with apply(self.loaded.model, self.methods[item.key]) as run:
            self._annotate(run, batch)
            yield run

    def _annotate(self, run: Run, batch: Batch) -> None:
        values = {}
        visual = self.loaded.visual_tokens
        if visual is not None and all(sample.foreground for sample in batch.samples):
            side = math.isqrt(visual)
            values["foreground"] = [foreground_tokens(sample, side, side) for sample in batch.samples]
        run.annotate(sample_ids=batch.positions, **values)


def why_no_foreground(sample: Sample, loaded: LoadedModel) -> str | None:
    """Why the tokens of the foreground are unknown; None if they are known."""
    if not sample.foreground:
        return "the task does not say which pixels show the objects"
    if loaded.visual_tokens is None:
        return f"the visual tokens of {loaded.name} are no fixed grid"
    return None


@contextmanager
def named(item: Series, batch: Batch | None = None) -> Iterator[None]:
    """Name the method, and the batch if there is one, in every error from inside the block.

    Raises:
        TokenPruneError: The same error, with the names. Any other exception becomes a :class:`PluginError`.
    """
    where = "the unpruned model" if item.unpruned else f"method {item.title!r}"
    if item.budget is not None:
        where += f" with budget '{item.budget}'"
    if batch is not None:
        first, last = batch.samples[0].id, batch.samples[-1].id
        where += f" on sample {first!r}" if first == last else f" on samples {first!r} to {last!r}"
    try:
        yield
    except TokenPruneError as error:
        raise type(error)(f"{where}: {error.what}", error.fix) from error
    except torch.OutOfMemoryError as error:
        raise ConfigError(f"{where}: the device is out of memory", "lower batch_size") from error
    except (RuntimeError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError) as error:
        text = " ".join(str(error).split())
        raise PluginError(f"{where} fails ({type(error).__name__}: {text[:300]})") from error
