"""How much faster: methods against the untouched model, on any device, paired round by round."""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from tokenprune.cache import cache_bytes
from tokenprune.config import Config, Method
from tokenprune.engine import apply
from tokenprune.errors import ConfigError, TokenPruneError, UnsupportedModelError
from tokenprune.flops_vision import vision_flops
from tokenprune.measure.latency import Spread, Stopwatch, environment, ratios, resolve_device
from tokenprune.measure.memory import peak_bytes
from tokenprune.models.presets import PRESETS, Request
from tokenprune.named import list_methods, load_method
from tokenprune.registry import suggest

if TYPE_CHECKING:
    from tokenprune.run import Run

Inputs = dict[str, Tensor]
UNPRUNED, KEEP_ALL = "unpruned", "keep-all"


class BenchConfig(Config):
    """What to time.

    Attributes:
        model: A preset (random weights: time does not depend on them), or a checkpoint by folder or hub name.
        methods: Named methods; ``("all",)`` for every one that is installed.
        averages: Budgets: visual tokens averaged over all layers, as a share of the prompt's.
        tokens: The same in tokens; given, they replace the shares.
        batches: Batch sizes.
        text_tokens: Text tokens per prompt.
        ragged: Prompts of different lengths: text times 1, 2, 1/2, 3 ..., and every second prompt with two images.
        decode: Decode steps timed after each prefill.
        rounds: Rounds; each runs every variant once, in an order of its own.
        warmup: Rounds that are not counted.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1`` ...
        dtype: Precision; ``auto`` is bfloat16.
        attention: The attention implementation.
        image_size: Side in pixels of the square images that a checkpoint's processor is given.
    """

    model: str = "llava-0.5b"
    methods: tuple[str, ...] = ("entropyprune",)
    averages: tuple[Annotated[float, Field(gt=0, le=1)], ...] = (1 / 3, 2 / 9, 1 / 9)
    tokens: tuple[PositiveInt, ...] = ()
    batches: tuple[PositiveInt, ...] = (1,)
    text_tokens: int = Field(default=60, ge=1)
    ragged: bool = False
    decode: int = Field(default=16, ge=0)
    rounds: int = Field(default=7, ge=1)
    warmup: int = Field(default=1, ge=0)
    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    image_size: int = Field(default=448, ge=28)


@dataclass
class Variant:
    """One line of the table: a method with a budget, or none.

    Attributes:
        name: ``unpruned``, ``keep-all`` or the method's.
        method: None for the untouched model.
        budget: Its layer average, ``{"tokens": 128}`` or ``{"ratio": 0.33}``.
        prefill: Milliseconds per round.
        step: Milliseconds of one decode step, the median of each round's.
        select: Milliseconds of scoring and selecting per round.
        kept: Visual tokens per sample after the last stage.
        kv_bytes: Of the KV cache after the prefill.
        peak_bytes: Memory held at once in a prefill and a decode step, beside weights and inputs.
        bound: FLOPs of the unpruned prefill over the pruned one's.
        problem: Why it could not run.
    """

    name: str
    method: Method | None = None
    budget: dict[str, float] = field(default_factory=dict)
    prefill: list[float] = field(default_factory=list)
    step: list[float] = field(default_factory=list)
    select: list[float] = field(default_factory=list)
    kept: list[int] = field(default_factory=list)
    kv_bytes: int = 0
    peak_bytes: int = 0
    bound: float | None = None
    problem: str | None = None

    def run_seconds(self, decode: int) -> list[float]:
        """Prefill and all decode steps, per round."""
        steps = self.step or [0.0] * len(self.prefill)
        return [(first + decode * step) / 1e3 for first, step in zip(self.prefill, steps, strict=True)]


@dataclass
class Subject:
    """A model, and how to make batches for it."""

    model: nn.Module
    name: str
    inputs: Callable[[Sequence[Request]], Inputs]


def run_bench(config: BenchConfig, progress: Callable[[str, int, int], None] | None = None) -> dict[str, Any]:
    """Time every method and budget against the untouched model.

    Each round runs all variants once, prefill and decode; ratios are taken within rounds. The *bound* of a variant
    is the ratio of closed-form FLOPs of its prefill, pruned against unpruned: no program can be that fast.

    Args:
        config: What to time.
        progress: Called with what is being done, how many rounds are done, and how many there are.

    Returns:
        JSON-ready: ``environment``, ``config``, and per batch size the ``rows`` of the table.

    Raises:
        ConfigError: Unknown preset, no such device, a method that is not installed ...
    """
    device = resolve_device(config.device)
    names = _names(config.methods)
    budgets: list[dict[str, float]] = [{"tokens": tokens} for tokens in config.tokens]
    budgets = budgets or [{"ratio": ratio} for ratio in config.averages]
    methods = [
        (name, load_method(name, budget="layer_average", **budget), budget) for name in names for budget in budgets
    ]
    subject = _subject(config, device)
    batches = []
    for batch in config.batches:
        inputs = subject.inputs(requests(batch, config))
        variants = [Variant(UNPRUNED), Variant(KEEP_ALL, load_method(names[0], budget="keep_ratio", ratio=1.0))]
        variants += [Variant(*each) for each in methods]
        variants = _time(subject.model, inputs, variants, config, device, progress)
        batches.append(_summary(variants, batch, config))
    model: Any = subject.model
    parameters = sum(parameter.numel() for parameter in model.parameters())
    described = {"name": subject.name, "parameters": parameters, "dtype": str(model.dtype).removeprefix("torch.")}
    return {
        "environment": environment(device),
        "model": described,
        "config": config.model_dump(mode="json"),
        "batches": batches,
    }


def requests(batch: int, config: BenchConfig) -> list[Request]:
    """The prompts of a batch: all alike, or ragged."""
    if not config.ragged:
        return [Request(config.text_tokens)] * batch
    factors = (1.0, 2.0, 0.5, 3.0)
    return [
        Request(max(1, round(config.text_tokens * factors[sample % 4])), images=1 + sample % 2)
        for sample in range(batch)
    ]


def _names(wanted: Sequence[str]) -> list[str]:
    installed = [method.name for method in list_methods()]
    if list(wanted) == ["all"]:
        return installed
    for name in wanted:
        if name not in installed:
            raise ConfigError(f"unknown method {name!r}", suggest(name, [*installed, "all"]))
    if not wanted:
        raise ConfigError("no method to time", "name at least one")
    return list(wanted)


def _subject(config: BenchConfig, device: torch.device) -> Subject:
    dtype = torch.bfloat16 if config.dtype == "auto" else getattr(torch, config.dtype)
    if config.model in PRESETS:
        chosen = PRESETS[config.model]
        model = chosen.build(device, dtype, config.attention)
        return Subject(model, chosen.name, lambda prompts: chosen.inputs(prompts, device, dtype))
    if "/" not in config.model and not Path(config.model).exists():
        raise ConfigError(
            f"unknown preset {config.model!r}",
            f"{suggest(config.model, PRESETS)}; or give a checkpoint's folder or hub name (owner/name)",
        )
    return _checkpoint(config, device)


def _checkpoint(config: BenchConfig, device: torch.device) -> Subject:
    """A user's own model, its processor and noise for images."""
    import numpy as np
    from PIL import Image

    from tokenprune.models.hf import HuggingFace
    from tokenprune.tasks.base import Sample

    loaded = HuggingFace(checkpoint=config.model, dtype=config.dtype, attention=config.attention).load()
    loaded.model.to(device)
    side = config.image_size
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8))

    def inputs(prompts: Sequence[Request]) -> Inputs:
        samples = [
            Sample(str(index), (noise,) * prompt.images, "word " * prompt.text_tokens, "", "", "", ())
            for index, prompt in enumerate(prompts)
        ]
        return loaded.encode(samples)

    return Subject(loaded.model, loaded.name, inputs)


def _time(
    model: Any,
    inputs: Inputs,
    variants: list[Variant],
    config: BenchConfig,
    device: torch.device,
    progress: Callable[[str, int, int], None] | None,
) -> list[Variant]:
    total = config.warmup + config.rounds
    watch = Stopwatch(device)
    batch = inputs["input_ids"].shape[0]
    for number in range(total):
        if progress is not None:
            progress(f"batch {batch}", number, total)
        ready = [variant for variant in variants if variant.problem is None]
        # a fixed order would give every variant the same predecessor, and with it the same hot or rested machine
        random.Random(number).shuffle(ready)
        for variant in ready:
            try:
                with _applied(model, variant.method) as run:
                    went = _go(model, inputs, config.decode, watch)
                    if number == 0:  # after a first pass: libraries have their workspaces
                        variant.kv_bytes = went.kv_bytes
                        variant.peak_bytes = peak_bytes(lambda: _go(model, inputs, min(config.decode, 1)), device)
                        if run is not None:
                            variant.kept, variant.bound = run.report.after, _flops_bound(model.config, run)
            except TokenPruneError as error:
                if variant.method is None or variant.name == KEEP_ALL:
                    raise
                variant.problem = " ".join(str(error).split())
                continue
            if number >= config.warmup:
                variant.prefill.append(went.prefill)
                if went.steps:
                    variant.step.append(Spread.of(went.steps).median)
                if run is not None:
                    variant.select.append(run.report.score_ms)
    if progress is not None:
        progress(f"batch {batch}", total, total)
    return variants


@contextmanager
def _applied(model: nn.Module, method: Method | None) -> Iterator[Run | None]:
    with nullcontext() if method is None else apply(model, method) as run:
        yield run


@dataclass(frozen=True)
class _Pass:
    """Milliseconds of a prefill and of each decode step after it; bytes of the cache in between."""

    prefill: float
    steps: list[float]
    kv_bytes: int


@torch.no_grad()
def _go(model: Any, inputs: Inputs, decode: int, watch: Stopwatch | None = None) -> _Pass:
    """One prefill and ``decode`` steps."""
    watch = watch or Stopwatch(inputs["input_ids"].device)
    last = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
    output, prefill = watch.time(lambda: model(**inputs, use_cache=True, **last))
    held = cache_bytes(output.past_key_values)
    ids = inputs["input_ids"]
    mask = inputs.get("attention_mask", torch.ones_like(ids))
    mask = torch.cat([mask, mask.new_ones(mask.shape[0], decode)], dim=1)
    steps = []
    for step in range(decode):
        token = output.logits[:, -1:].argmax(-1)
        given: dict[str, Any] = {"input_ids": token, "attention_mask": mask[:, : ids.shape[1] + step + 1]}
        given["past_key_values"] = output.past_key_values
        output, taken = watch.time(lambda given=given: model(**given, use_cache=True))  # type: ignore[misc]
        steps.append(taken)
    return _Pass(prefill, steps, held)


def _flops_bound(config: Any, run: Run) -> float | None:
    """FLOPs of the unpruned prefill divided by those of the pruned one, all samples together.

    None for a family whose tower or decoder has no closed form.
    """
    report = run.report
    samples = range(len(report.before))
    try:
        vision = sum(sum(vision_flops(config, visual)) for visual in report.before)
        unpruned, pruned = (
            vision + sum(report.flops(sample, pruned) for sample in samples) for pruned in (False, True)
        )
    except UnsupportedModelError:
        return None
    return unpruned / pruned


def _summary(variants: list[Variant], batch: int, config: BenchConfig) -> dict[str, Any]:
    base = variants[0]
    return {"batch": batch, "rows": [_row(variant, base, batch, config) for variant in variants]}


def _row(variant: Variant, base: Variant, batch: int, config: BenchConfig) -> dict[str, Any]:
    row: dict[str, Any] = {"name": variant.name, **variant.budget}
    if variant.problem is not None:
        return {**row, "problem": variant.problem}
    seconds, base_seconds = variant.run_seconds(config.decode), base.run_seconds(config.decode)
    speedup = ratios(base.prefill, variant.prefill)
    row |= {
        "kept": variant.kept,
        "prefill_ms": Spread.of(variant.prefill).to_dict(),
        "prefill_ratio": ratios(variant.prefill, base.prefill).to_dict(),
        "speedup": speedup.to_dict(),
        "bound": variant.bound,
        "of_bound": speedup.median / variant.bound if variant.bound else None,
        "select_ms": Spread.of(variant.select).to_dict() if variant.select else None,
        "select_share": ratios(variant.select, variant.prefill).median if variant.select else None,
        "kv_bytes": variant.kv_bytes,
        "peak_bytes": variant.peak_bytes,
        "requests_per_s": Spread.of([batch / taken for taken in seconds]).to_dict(),
        "throughput_ratio": ratios(base_seconds, seconds).to_dict(),
    }
    if variant.step:
        row["step_ms"] = Spread.of(variant.step).to_dict()
        row["step_ratio"] = ratios(variant.step, base.step).to_dict()
        row["decode_tokens_per_s"] = batch * 1e3 / Spread.of(variant.step).median
    return row
