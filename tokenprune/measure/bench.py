"""Times methods against the unpruned model, on any device, in paired rounds."""

from __future__ import annotations

import inspect
import random
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, Literal, cast

import numpy as np
import torch
from pydantic import Field, PositiveInt, field_validator, model_validator
from torch import Tensor, nn

from tokenprune.config import Config, Method
from tokenprune.core.call_arguments import returned_cache
from tokenprune.core.clock import environment, timed
from tokenprune.core.forward_errors import device_broken, forward_errors
from tokenprune.core.references import UNPRUNED
from tokenprune.core.text import one_line
from tokenprune.engine.cache import cache_bytes
from tokenprune.errors import ConfigError, TokenPruneError, UnsupportedModelError
from tokenprune.flops.vision import vision_flops
from tokenprune.measure.decoding import Decoding, many_graphs, step_bytes
from tokenprune.measure.latency import Spread, ratios
from tokenprune.measure.memory import peak_bytes
from tokenprune.methods.named import by_title, method_names
from tokenprune.models.answer import not_finite
from tokenprune.models.device import resolve_device
from tokenprune.models.dtype import Dtype
from tokenprune.models.named import find_model, find_preset
from tokenprune.models.presets import Request
from tokenprune.ops.finite import is_distribution
from tokenprune.run import Run, apply
from tokenprune.tasks.base import Sample

Inputs = dict[str, Tensor]
#: The named method that prunes nothing: it costs what the engine costs.
KEEP_ALL = "keep-all"


class BenchConfig(Config):
    """Configuration of the bench.

    Attributes:
        model: A preset (with random weights, which do not affect times), a checkpoint by folder or hub name, or a
            plugin's model.
        methods: Named methods, or YAML files with a method; ``("all",)`` for every installed one.
        average_ratio: Budgets: visual tokens averaged over all layers, as a share of the prompt's visual tokens.
        average_tokens: Budgets: layer averages in tokens; if given, they replace ``average_ratio``.
        batches: Batch sizes.
        text_tokens: Text tokens per prompt.
        ragged: Use prompts of different lengths: ``text_tokens`` times 1, 2, 1/2, 3 ...; every second has two images.
        decode: Decode steps timed after each prefill.
        rounds: Timed rounds. Each round runs every series once, in a random order.
        warmup: Untimed rounds before these.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1`` ...
        dtype: Precision: ``float32``, ``bfloat16`` or ``float16``, or by another name, e.g. ``bf16``; ``auto`` is
            bfloat16 for a preset, else that of the model.
        attention: The attention implementation.
        cache: The KV cache: ``dynamic``, or ``static`` with room for the prompt and the decode steps.
        compile: Time every series twice, with eager and with compiled decode steps; needs the static cache and a
            warm-up round, in which the graphs are made.
        image_size: Side in pixels of the square images for a model's processor.
    """

    model: str = "llava-0.5b"
    methods: tuple[str, ...] = ("entropyprune",)
    average_ratio: tuple[Annotated[float, Field(gt=0, le=1)], ...] = (1 / 3, 2 / 9, 1 / 9)
    average_tokens: tuple[PositiveInt, ...] = ()
    batches: tuple[PositiveInt, ...] = (1,)
    text_tokens: int = Field(default=60, ge=1)
    ragged: bool = False
    decode: int = Field(default=16, ge=0)
    rounds: int = Field(default=7, ge=1)
    warmup: int = Field(default=1, ge=0)
    device: str = "auto"
    dtype: Dtype = "auto"
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    cache: Literal["dynamic", "static"] = "dynamic"
    compile: bool = False
    image_size: int = Field(default=448, ge=28)

    @field_validator("average_ratio", "average_tokens", "batches")
    @classmethod
    def _once(cls, values: tuple[float, ...]) -> tuple[float, ...]:
        if len(set(values)) < len(values):
            raise ValueError("give each value once")
        return values

    @model_validator(mode="after")
    def _can_compile(self) -> BenchConfig:
        if not self.compile:
            return self
        if self.cache != "static":
            raise ValueError("compile needs cache: static: what a dynamic cache holds changes its shape at each step")
        if not self.warmup or not self.decode:
            raise ValueError("compile needs at least one round of warmup, which makes the graphs, and one decode step")
        return self


@dataclass
class TimedSeries:
    """One row of the table: a method with a budget, and its measurements.

    Attributes:
        name: ``unpruned``, ``keep-all`` or the method's name.
        method: The method; None for the unpruned model.
        budget: The layer average, ``{"tokens": 128}`` or ``{"ratio": 0.33}``.
        compiled: Whether the decode steps are compiled.
        prefill: Milliseconds of the prefill, per round.
        step: Milliseconds of a decode step, per round (the median of the round's steps).
        step_cpu: Milliseconds of processor time of a decode step, per round, of all threads of the host.
        select: Milliseconds of scoring and selecting, per round.
        kept: Visual tokens per sample after the last stage.
        kv_bytes: Bytes of the KV cache after the prefill.
        peak_bytes: Peak memory of a prefill and a decode step in bytes, without weights and inputs; None if unknown.
        step_bytes: Bytes that a decode step reads: weights of the decoder and its head, and the KV cache.
        bound: FLOPs of the unpruned prefill divided by those of the pruned one; None if unknown.
        problem: Why the method could not run; None if it ran.
    """

    name: str
    method: Method | None = None
    budget: dict[str, float] = field(default_factory=dict)
    compiled: bool = False
    prefill: list[float] = field(default_factory=list)
    step: list[float] = field(default_factory=list)
    step_cpu: list[float] = field(default_factory=list)
    select: list[float] = field(default_factory=list)
    kept: list[int] = field(default_factory=list)
    kv_bytes: int = 0
    peak_bytes: int | None = None
    step_bytes: int = 0
    bound: float | None = None
    problem: str | None = None

    def run_seconds(self, decode: int) -> list[float]:
        """Seconds of the prefill and all decode steps, per round."""
        steps = self.step or [0.0] * len(self.prefill)
        return [(prefill + decode * step) / 1e3 for prefill, step in zip(self.prefill, steps, strict=True)]


@dataclass
class BenchModel:
    """A model and a function that makes its batches.

    Attributes:
        model: The model, on its device.
        name: The name for reports.
        inputs: Makes the inputs of a batch of prompts.
    """

    model: nn.Module
    name: str
    inputs: Callable[[Sequence[Request]], Inputs]


def run_bench(
    config: BenchConfig,
    progress: Callable[[str, int, int], None] | None = None,
    loaded: BenchModel | None = None,
) -> dict[str, Any]:
    """Time every method and budget against the unpruned model.

    Each round runs all series once, prefill and decode. Ratios are taken within rounds. The *bound* of a series is
    the closed-form FLOPs of the unpruned prefill divided by those of the pruned one: the largest speedup that fewer
    FLOPs alone can give.

    Args:
        config: The configuration.
        progress: Called with a description, the number of finished rounds and the number of all rounds.
        loaded: The model, in place of the one that the configuration names.

    Returns:
        JSON-ready: ``environment``, ``model``, ``config``, and ``batches`` with the ``rows`` of each table.

    Raises:
        ConfigError: Unknown model, device or method.
        UnsupportedFeatureError: The unpruned model's logits hold NaN or infinity: it computes nothing worth timing.
    """
    names = method_names() if config.methods == ("all",) else config.methods
    if not names:
        raise ConfigError("no method to time", "name at least one")
    named = by_title(names, (UNPRUNED, KEEP_ALL), "rows of the table")
    budgets: list[dict[str, float]] = [{"tokens": tokens} for tokens in config.average_tokens]
    budgets = budgets or [{"ratio": ratio} for ratio in config.average_ratio]
    keep_all = next(iter(named.values())).method(keep_ratio=1.0)
    methods: list[tuple[str, Method | None, dict[str, float]]] = [(UNPRUNED, None, {}), (KEEP_ALL, keep_all, {})]
    methods += [
        (title, method.method("layer_average", **budget), budget)
        for title, method in named.items()
        for budget in budgets
    ]
    loaded = loaded or _load_model(config)
    device: torch.device = cast(Any, loaded.model).device
    ways = (False, True) if config.compile else (False,)
    batches = []
    for batch in config.batches:
        inputs = loaded.inputs(requests(batch, config))
        series = [TimedSeries(*item, compiled=compiled) for item in methods for compiled in ways]
        unpruned = {item.compiled: item for item in series if item.name == UNPRUNED}
        _time(loaded.model, inputs, series, config, device, progress or (lambda *_: None))
        batches.append(
            {"batch": batch, "rows": [_row(item, unpruned[item.compiled], batch, config) for item in series]}
        )
    model: Any = loaded.model
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return {
        "environment": environment(device),
        "model": {"name": loaded.name, "parameters": parameters, "dtype": str(model.dtype).removeprefix("torch.")},
        "config": config.model_dump(mode="json"),
        "batches": batches,
    }


def requests(batch: int, config: BenchConfig) -> list[Request]:
    """The prompts of a batch: all of the same length, or ragged."""
    if not config.ragged:
        return [Request(config.text_tokens)] * batch
    factors = (1.0, 2.0, 0.5, 3.0)
    return [
        Request(max(1, round(config.text_tokens * factors[sample % 4])), images=1 + sample % 2)
        for sample in range(batch)
    ]


def _load_model(config: BenchConfig) -> BenchModel:
    preset = find_preset(config.model)
    if preset is None:
        return _with_processor(config)
    device = resolve_device(config.device)
    dtype = torch.bfloat16 if config.dtype == "auto" else getattr(torch, config.dtype)
    model = preset.build(device, dtype, config.attention)
    return BenchModel(model, preset.name, lambda prompts: preset.inputs(prompts, device, dtype))


def _with_processor(config: BenchConfig) -> BenchModel:
    """A model with a processor of its own; the images are noise."""
    from PIL import Image  # optional: presets need no images

    fields: Any = type(config).model_fields
    stated = {name: getattr(config, name) for name in ("dtype", "device", "attention")}
    changed = {name: value for name, value in stated.items() if value != fields[name].default}
    loaded = find_model(config.model, "bench", changed).load()
    side = config.image_size
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8))

    def inputs(prompts: Sequence[Request]) -> Inputs:
        samples = [
            Sample(str(index), (noise,) * prompt.images, "word " * prompt.text_tokens, "", "", "", ())
            for index, prompt in enumerate(prompts)
        ]
        return loaded.encode(samples)

    return BenchModel(loaded.model, loaded.name, inputs)


def _time(
    model: Any,
    inputs: Inputs,
    series: list[TimedSeries],
    config: BenchConfig,
    device: torch.device,
    progress: Callable[[str, int, int], None],
) -> None:
    """Run all rounds and write the measurements into the series."""
    total = config.warmup + config.rounds
    batch = inputs["input_ids"].shape[0]
    ways = {item.compiled for item in series}
    decodings = {way: Decoding(model, config.decode, config.cache == "static", way) for way in ways}
    with ExitStack() as stack:
        pruned: Callable[[Method | None], Any] = partial(_applied, model)
        if config.compile:  # graphs belong to an apply block, so all rounds are in one
            stack.enter_context(many_graphs())
            pruned = stack.enter_context(apply(model, None)).using
        for number in range(total):
            progress(f"batch {batch}", number, total)
            runnable = [item for item in series if item.problem is None]
            # with a fixed order every series would follow the same one, and find the machine as hot as that left it
            random.Random(number).shuffle(runnable)
            for item in runnable:
                decoding = decodings[item.compiled]
                try:
                    with forward_errors(), pruned(item.method) as run:
                        times = _time_pass(model, inputs, decoding, device)
                        if not times.finite:
                            raise not_finite("of the timed prompts")
                        if number == 0:  # after a first pass, so that the workspaces of libraries are allocated
                            item.kv_bytes = times.kv_bytes
                            item.step_bytes = step_bytes(model, times.kv_bytes)
                            one_step = partial(_time_pass, model, inputs, decoding, device, min(config.decode, 1))
                            if not item.compiled or device.type == "cuda":  # elsewhere each operation is watched
                                item.peak_bytes = peak_bytes(one_step, device)
                            if item.method is not None:
                                item.kept, item.bound = run.report.after, _flops_bound(model.config, run)
                except TokenPruneError as error:
                    if item.method is None or item.name == KEEP_ALL or device_broken(error):
                        raise
                    item.problem = one_line(error)
                    continue
                if number >= config.warmup:
                    item.prefill.append(times.prefill)
                    if times.steps:
                        item.step.append(Spread.of(times.steps).median)
                        item.step_cpu.append(Spread.of(times.step_cpu).median)
                    if item.method is not None:
                        item.select.append(run.report.score_ms)
    progress(f"batch {batch}", total, total)


def _applied(model: Any, method: Method | None) -> Any:
    """A block in which a method is applied to the model; nothing is, for None."""
    return nullcontext() if method is None else apply(model, method)


@dataclass(frozen=True)
class _PassTimes:
    """One prefill and the decode steps after it.

    Attributes:
        prefill: Milliseconds of the prefill.
        steps: Milliseconds of each decode step.
        step_cpu: Milliseconds of processor time of each.
        kv_bytes: Bytes of the KV cache after the prefill.
        finite: Whether the logits behind the prompt and of the last step hold neither NaN nor infinity.
    """

    prefill: float
    steps: list[float]
    step_cpu: list[float]
    kv_bytes: int
    finite: bool


@torch.no_grad()
def _time_pass(
    model: Any, inputs: Inputs, decoding: Decoding, device: torch.device, steps: int | None = None
) -> _PassTimes:
    """Time one prefill and some decode steps, all of them by default."""
    last_only = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
    ids = inputs["input_ids"]
    given = {**inputs, **last_only, **decoding.cache(ids.shape[1])}
    output, prefill = timed(device, lambda: model(**given, use_cache=True))
    cache = returned_cache(output)
    kv_bytes, prompt_logits = cache_bytes(cache), output.logits[:, -1]
    mask = inputs.get("attention_mask", torch.ones_like(ids))
    mask = torch.cat([mask, mask.new_ones(mask.shape[0], decoding.steps)], dim=1)
    wall, cpu = [], []
    for step in range(decoding.steps if steps is None else steps):
        token, seen = output.logits[:, -1:].argmax(-1), mask[:, : ids.shape[1] + step + 1]
        before = time.process_time()
        output, milliseconds = timed(device, partial(decoding.step, token, seen, returned_cache(output)))
        wall.append(milliseconds)
        cpu.append((time.process_time() - before) * 1e3)
    finite = is_distribution(torch.stack([prompt_logits, output.logits[:, -1]])).all()
    return _PassTimes(prefill, wall, cpu, kv_bytes, bool(finite))


def _flops_bound(config: Any, run: Run) -> float | None:
    """FLOPs of the unpruned prefill divided by those of the pruned one, all samples together.

    None for a family whose tower or decoder has no closed form.
    """
    report, samples = run.report, range(len(run.report.before))
    try:
        vision = sum(sum(vision_flops(config, visual)) for visual in report.before)
        unpruned, pruned = (vision + sum(report.flops(sample, side) for sample in samples) for side in (False, True))
    except UnsupportedModelError:
        return None
    return unpruned / pruned


def _row(series: TimedSeries, base: TimedSeries, batch: int, config: BenchConfig) -> dict[str, Any]:
    """The measurements of a series, JSON-ready, with ratios to those of ``base``: the unpruned model, run as it was."""
    row: dict[str, Any] = {"name": series.name, **series.budget, **({"compiled": True} if series.compiled else {})}
    if series.problem is not None:
        return {**row, "problem": series.problem}
    seconds, base_seconds = series.run_seconds(config.decode), base.run_seconds(config.decode)
    speedup = ratios(base.prefill, series.prefill)
    row |= {
        "kept": series.kept,
        "prefill_ms": Spread.of(series.prefill).to_dict(),
        "prefill_ratio": ratios(series.prefill, base.prefill).to_dict(),
        "speedup": speedup.to_dict(),
        "bound": series.bound,
        "of_bound": speedup.median / series.bound if series.bound else None,
        "select_ms": Spread.of(series.select).to_dict() if series.select else None,
        "select_share": ratios(series.select, series.prefill).median if series.select else None,
        "kv_bytes": series.kv_bytes,
        "step_bytes": series.step_bytes,
        "peak_bytes": series.peak_bytes,
        "requests_per_s": Spread.of([batch / duration for duration in seconds]).to_dict(),
        "throughput_ratio": ratios(base_seconds, seconds).to_dict(),
    }
    if series.step:
        row["step_ms"] = Spread.of(series.step).to_dict()
        row["step_ratio"] = ratios(series.step, base.step).to_dict()
        row["step_cpu_ms"] = Spread.of(series.step_cpu).to_dict()
        row["step_cpu_ratio"] = ratios(series.step_cpu, base.step_cpu).to_dict()
        row["step_bound"] = base.step_bytes / series.step_bytes
        row["step_of_bound"] = ratios(base.step, series.step).median / row["step_bound"]
        row["decode_tokens_per_s"] = batch * 1e3 / Spread.of(series.step).median
    return row
