"""Running an experiment: every series answers every sample. A stopped run can be continued at any time."""

from __future__ import annotations

import json
import math
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor

from tokenprune.adapters import adapter_for
from tokenprune.budgets.base import Schedule
from tokenprune.engine import apply, choose_layers, measure_entropy
from tokenprune.errors import BudgetError, ConfigError, UnsupportedModelError
from tokenprune.experiment.config import ExperimentConfig
from tokenprune.experiment.features import SharedFeatures
from tokenprune.experiment.results import Results
from tokenprune.experiment.series import Series
from tokenprune.flops import kv_cache_bytes, prefill_cost, prefill_flops
from tokenprune.models.base import LoadedModel
from tokenprune.run import Run
from tokenprune.selectors.entropy_profile import EntropyProfile
from tokenprune.selectors.fixed import Fixed
from tokenprune.tasks.base import Sample, foreground_tokens
from tokenprune.version import __version__

#: Called after every batch with (series key, batches done, batches in total).
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class ExperimentResult:
    """A finished experiment.

    Attributes:
        folder: Folder of its files.
        rows: One dictionary per series and sample.
        timing: Series key -> prefill time divided by that of the unpruned model, one number per round.
        choices: Series key -> the layers, and the reason for the choice.
    """

    folder: str
    rows: list[dict[str, Any]]
    timing: dict[str, list[float]]
    choices: dict[str, dict[str, Any]]


def run_experiment(config: ExperimentConfig, progress: Progress | None = None) -> ExperimentResult:
    """Run an experiment, or continue the one in its output folder.

    Args:
        config: The experiment.
        progress: Called after every batch.

    Raises:
        TokenPruneError: The configuration is wrong. It is checked before anything runs.
    """
    results = Results(config.output)
    with results.locked():
        series = list(config.series())
        results.claim(config.to_yaml(), {item.key: item.definition for item in series})
        samples = config.task.samples()
        batches = [list(samples[i : i + config.batch_size]) for i in range(0, len(samples), config.batch_size)]
        done = results.recover([[sample.id for sample in batch] for batch in batches])
        keys = {item.key for item in series}
        choices = results.read_json("choices.json") or {}
        timing = results.read_json("timing.json") or {}
        answered = all((item.key, number) in done for item in series for number in range(len(batches)))
        timed = config.timing == 0 or all(len(timing.get(item.key, ())) == config.timing for item in series[1:])
        if not (answered and timed and keys - {"unpruned"} <= choices.keys()):
            series_runner = _SeriesRunner(config, config.model.load(), results)
            choices = series_runner.choose_layers(series)
            results.write("choices.json", json.dumps(choices, indent=1))
            results.write("environment.json", json.dumps(environment(), indent=1))
            series_runner.answer(series, batches, done, progress)
            timing = series_runner.time(series, batches[0], progress) if config.timing else {}
        rows = [
            row for row in results.rows() if row["series"] in keys
        ]  # the folder may hold series of an earlier configuration
        return ExperimentResult(str(results.folder), rows, timing, choices)


def profile_model(config: ExperimentConfig) -> EntropyProfile:
    """The entropy curves of an experiment's model over its calibration pictures.

    Raises:
        ConfigError: The experiment has no calibration pictures.
    """
    loaded = config.model.load()
    inputs = calibration(config, loaded)
    if inputs is None:
        raise ConfigError("this experiment has no calibration pictures", "set calibration to 1 or more")
    return measure_entropy(loaded.model, inputs, cache=False)


def calibration(config: ExperimentConfig, loaded: LoadedModel) -> list[Mapping[str, Tensor]] | None:
    """Inputs of a few samples of different images (see :meth:`Task.calibration`); None if none are asked for."""
    if config.calibration == 0:
        return None
    return [loaded.encode([sample]) for sample in config.task.calibration(config.calibration)]


def environment() -> dict[str, Any]:
    """Versions and machine, stored with the results."""
    return {
        "tokenprune": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }


class _SeriesRunner:
    """Runs the series of one experiment on its loaded model."""

    def __init__(self, config: ExperimentConfig, loaded: LoadedModel, results: Results) -> None:
        self.config, self.loaded, self.results = config, loaded, results
        self.adapter = adapter_for(loaded.model)
        self.calibration = calibration(config, loaded)
        self.layers: dict[str, tuple[int, ...]] = {}  # by series key; a selector that searches runs once per series

    def choose_layers(self, series: Sequence[Series]) -> dict[str, dict[str, Any]]:
        """Choose the layers of every series and check that its budget can be met, before any sample is answered.

        Returns:
            Series key -> the layers, and the reason for the choice.

        Raises:
            TokenPruneError: A method or budget does not fit the model.
        """
        samples = self.config.task.samples()
        images = min(len(sample.images) for sample in samples)
        choices = {}
        for item in series:
            if item.method is None:
                continue
            choice = choose_layers(self.loaded.model, item.method, self.calibration)
            if self.loaded.visual_tokens is not None:
                visual = self.loaded.visual_tokens * images
                if (item.method.budget.largest_count or 0) > visual:
                    raise BudgetError(
                        f"budget '{item.budget}' asks for more than the {visual} visual tokens of a sample",
                        f"ask for 1 to {visual}",
                    )
                cost = prefill_cost(self.adapter.config, 0)  # text lowers the reduction: without it, it is the largest
                item.method.budget.keep(visual, Schedule(choice.layers, self.adapter.num_layers, cost))
            choices[item.key] = {"layers": list(choice.layers), "reason": choice.reason}
            self.layers[item.key] = choice.layers
        return choices

    def answer(
        self,
        series: Sequence[Series],
        batches: Sequence[Sequence[Sample]],
        done: set[tuple[str, int]],
        progress: Progress | None,
    ) -> None:
        """Answer all batches that are not done.

        The loop goes batch by batch over all series, so that the series of a stopped run cover the same samples.
        """
        total = len(series) * len(batches)
        finished = sum((item.key, number) in done for item in series for number in range(len(batches)))
        features = SharedFeatures(self.loaded.model)
        offset = 0
        for number, batch in enumerate(batches):
            missing = [item for item in series if (item.key, number) not in done]
            inputs = self.loaded.encode(batch) if missing else {}
            for item in missing:
                # a pruner that reads the tower's layers needs the tower to run
                reads_tower = item.method is not None and bool(item.method.pruner.vision_layers)
                with self._applied(item) as run, nullcontext() if reads_tower else features.enabled():
                    self.results.append(self._answer(item, run, batch, inputs, offset))
                finished += 1
                if progress is not None:
                    progress(item.key, finished, total)
            offset += len(batch)

    def _applied(self, item: Series) -> Any:
        if item.method is None:
            return nullcontext()
        layers = Fixed(layers=self.layers[item.key])
        return apply(self.loaded.model, item.method.model_copy(update={"layers": layers}))

    def _annotate(self, run: Run, batch: Sequence[Sample], offset: int) -> None:
        values = {}
        visual = self.loaded.visual_tokens
        if visual is not None and all(sample.foreground for sample in batch):
            side = math.isqrt(visual)
            values["foreground"] = [foreground_tokens(sample, side, side) for sample in batch]
        run.annotate(sample_ids=range(offset, offset + len(batch)), **values)

    @torch.no_grad()
    def _answer(
        self, item: Series, run: Run | None, batch: Sequence[Sample], inputs: Mapping[str, Tensor], offset: int
    ) -> list[dict[str, Any]]:
        if run is not None:
            self._annotate(run, batch, offset)
        ids = self.loaded.model.generate(**inputs, max_new_tokens=self.config.max_new_tokens, do_sample=False)
        texts = self.loaded.decode(ids[:, inputs["input_ids"].shape[1] :])
        padding = (inputs["attention_mask"] == 0).sum(1).tolist() if "attention_mask" in inputs else [0] * len(batch)
        rows = []
        for index, (sample, text) in enumerate(zip(batch, texts, strict=True)):
            row = {
                "series": item.key,
                "method": item.title,
                "budget": item.budget,
                "seed": item.seed,
                "sample": sample.id,
                "type": sample.type,
                "group": sample.group,
                "answer": sample.answer,
                "prediction": text,
                "score": float(self.config.task.score(sample, text)),
            }
            rows.append(row | self._cost(inputs, run, index, int(padding[index])))
        return rows

    def _cost(self, inputs: Mapping[str, Tensor], run: Run | None, index: int, padding: int) -> dict[str, Any]:
        """Tokens, FLOPs and cache bytes of one sample's prefill, without its padding.

        FLOPs and bytes are NaN for a family without a closed form.
        """
        config = self.adapter.text_config
        layers = self.adapter.num_layers
        length = inputs["input_ids"].shape[1] - padding
        if run is None:
            mask = self.adapter.visual_mask({"input_ids": inputs["input_ids"][index : index + 1]})
            before = after = int(mask.sum()) if mask is not None else 0
            average = float(before)
            tokens_pruned = [length] * layers
        else:
            report = run.report
            before, after, average = report.before[index], report.after[index], report.layer_average(index)
            tokens_pruned = [tokens - padding for tokens in report.tokens_per_layer(index)]
        tokens_unpruned = [length] * layers
        text = length - before
        size = self.loaded.model.dtype.itemsize
        return {
            "visual_before": before,
            "visual_after": after,
            "layer_average": average,
            "flops": _nan_if_unknown(lambda: prefill_flops(config, tokens_pruned, [n - text for n in tokens_pruned])),
            "flops_unpruned": _nan_if_unknown(lambda: prefill_flops(config, tokens_unpruned, [before] * layers)),
            "kv_bytes": _nan_if_unknown(lambda: kv_cache_bytes(config, tokens_pruned, size)),
            "kv_bytes_unpruned": _nan_if_unknown(lambda: kv_cache_bytes(config, tokens_unpruned, size)),
        }

    @torch.no_grad()
    def time(
        self, series: Sequence[Series], batch: Sequence[Sample], progress: Progress | None
    ) -> dict[str, list[float]]:
        """Prefill times divided by that of the unpruned model in the same round, so that drift cancels out.

        Returns:
            Series key -> one ratio per round.
        """
        inputs = self.loaded.encode(batch)
        ratios: dict[str, list[float]] = {item.key: [] for item in series[1:]}
        for number in range(-1, self.config.timing):  # round -1 warms up
            unpruned = self._prefill(None, inputs, batch)
            for item in series[1:]:
                ratio = self._prefill(item, inputs, batch) / unpruned
                if number >= 0:
                    ratios[item.key].append(ratio)
            if progress is not None:
                progress("timing", number + 2, self.config.timing + 1)
        self.results.write("timing.json", json.dumps(ratios, indent=1))
        return ratios

    def _prefill(self, item: Series | None, inputs: Mapping[str, Tensor], batch: Sequence[Sample]) -> float:
        with self._applied(item) if item is not None else nullcontext() as run:
            if run is not None:
                self._annotate(run, batch, 0)
            self._wait()
            start = time.perf_counter()
            self.loaded.model(**inputs, use_cache=True, logits_to_keep=1)
            self._wait()
            return time.perf_counter() - start

    def _wait(self) -> None:
        if self.loaded.model.device.type == "cuda":
            torch.cuda.synchronize()


def _nan_if_unknown(closed_form: Callable[[], int]) -> float:
    """The value of a closed form; NaN for a family without one."""
    try:
        return closed_form()
    except UnsupportedModelError:
        return math.nan


def median(values: Sequence[float]) -> float:
    """The median; NaN without values."""
    return statistics.median(values) if values else float("nan")
