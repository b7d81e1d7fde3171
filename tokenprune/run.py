"""The state of one applied method on one model: what was kept, and what it saved."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from tokenprune.budgets.base import Schedule
from tokenprune.budgets.layer_average import layer_average
from tokenprune.config import Method
from tokenprune.errors import UnsupportedModelError
from tokenprune.flops import prefill_flops
from tokenprune.selectors.base import LayerChoice


class Clock:
    """A moment, on the host or on the device's stream, without waiting for it."""

    def __init__(self, device: torch.device) -> None:
        self.event: Any = None
        self.host = time.perf_counter()
        if device.type == "cuda":
            self.event = torch.cuda.Event(enable_timing=True)
            self.event.record()

    def since(self, start: Clock) -> float:
        """Milliseconds since ``start``; waits for the device when asked, not when recorded."""
        if self.event is None:
            return (self.host - start.host) * 1e3
        self.event.synchronize()
        return float(start.event.elapsed_time(self.event))


@dataclass
class StageResult:
    """One pruning stage of the last prefill.

    Attributes:
        layer: Tokens were dropped before this layer.
        before: Visual tokens per sample before the stage.
        after: Visual tokens per sample after it.
        rows: Position in the unpruned sequence of every row from ``layer`` on, long ``[batch, rows]``, -1 for the
            padding of samples that kept fewer; None when nothing was pruned.
        reason: Why nothing was pruned; None when something was.
    """

    layer: int
    before: list[int]
    after: list[int]
    rows: Tensor | None = None
    reason: str | None = None
    _positions: Tensor | None = field(default=None, repr=False)
    _keep: Tensor | None = field(default=None, repr=False)

    @cached_property
    def kept(self) -> Tensor:
        """Unpruned positions of the kept visual tokens, long ``[batch, max_kept]``, ascending, -1 padded.

        After a stage that dropped nothing these are all that were left before it.
        """
        if self._positions is None or self._keep is None:
            return torch.full((len(self.after), 0), -1)
        width = max(self.after, default=0)
        order = (~self._keep).int().argsort(dim=1, stable=True)[:, :width]
        return self._positions.gather(1, order).masked_fill(~self._keep.gather(1, order), -1)


@dataclass
class PrefillRecord:
    """What a run shows of one prefill; the engine fills it on the way.

    Attributes:
        text_tokens: Tokens per sample that are not visual (padding included).
        stages: The stages that have passed.
        clock: Begin and end of scoring and selecting at each stage.
        kv_bytes: Bytes of the KV cache after the prefill, 0 without a cache.
        kv_bytes_unpruned: What it would have been.
    """

    text_tokens: list[int] = field(default_factory=list)
    stages: list[StageResult] = field(default_factory=list)
    clock: list[tuple[Clock, Clock]] = field(default_factory=list)
    kv_bytes: int = 0
    kv_bytes_unpruned: int = 0


@dataclass(frozen=True)
class Annotations:
    """What the caller gave for the following prefills.

    Attributes:
        sample_ids: One stable integer per sample; None to count samples.
        values: One vector per sample, by name.
    """

    sample_ids: tuple[int, ...] | None = None
    values: Mapping[str, Sequence[Tensor]] = field(default_factory=dict)


@dataclass
class Report:
    """What the last prefill did. ``print`` it.

    Attributes:
        model: Family of the model.
        choice: Layers and why these.
        stages: The stages; see :class:`StageResult`.
        num_layers: Decoder layers.
        text_tokens: Tokens per sample that are not visual (padding included).
        kv_bytes: Bytes of the KV cache after the prefill, 0 without a cache.
        kv_bytes_unpruned: What it would have been.
        score_ms: Milliseconds spent scoring and selecting, all stages.
    """

    model: str
    choice: LayerChoice
    stages: list[StageResult]
    num_layers: int
    text_tokens: list[int]
    kv_bytes: int
    kv_bytes_unpruned: int
    score_ms: float
    text_config: Any = field(default=None, repr=False)

    @property
    def before(self) -> list[int]:
        """Visual tokens per sample before any stage."""
        return self.stages[0].before if self.stages else []

    @property
    def after(self) -> list[int]:
        """Visual tokens per sample after the last stage."""
        return self.stages[-1].after if self.stages else []

    @property
    def reason(self) -> str | None:
        """Why nothing was pruned; None when something was."""
        reasons = [stage.reason for stage in self.stages]
        return reasons[0] if reasons and all(reasons) else None

    def layer_average(self, sample: int = 0) -> float:
        """Visual tokens of a sample averaged over all decoder layers."""
        schedule = Schedule(tuple(stage.layer for stage in self.stages), self.num_layers)
        return layer_average(self.before[sample], tuple(stage.after[sample] for stage in self.stages), schedule)

    def tokens_per_layer(self, sample: int = 0, pruned: bool = True) -> list[int]:
        """Tokens (text and visual) of a sample that each decoder layer sees in the prefill."""
        counts = [self.before[sample]] * self.num_layers
        for stage in self.stages if pruned else ():
            counts[stage.layer :] = [stage.after[sample]] * (self.num_layers - stage.layer)
        return [count + self.text_tokens[sample] for count in counts]

    def flops(self, sample: int = 0, pruned: bool = True) -> int:
        """FLOPs of the decoder's prefill of one sample, closed form; see :mod:`tokenprune.flops`.

        Raises:
            UnsupportedModelError: The closed form does not describe this family's layers.
        """
        tokens = self.tokens_per_layer(sample, pruned)
        visual = [count - self.text_tokens[sample] for count in tokens]
        return prefill_flops(self.text_config, tokens, visual)

    def __str__(self) -> str:
        if not self.stages:
            return f"{self.model}: no prefill yet"
        lines = [f"{self.model}: layers {list(self.choice.layers)} ({self.choice.reason})"]
        for stage in self.stages:
            lines.append(
                f"  layer {stage.layer}: " + (stage.reason or f"visual tokens {stage.before} -> {stage.after}")
            )
        if self.reason is None:
            lines.append(f"  {self._flops_line()}")
            if self.kv_bytes:
                lines.append(f"  KV cache: {self.kv_bytes_unpruned:,} -> {self.kv_bytes:,} bytes")
            lines.append(f"  scoring and selecting: {self.score_ms:.2f} ms")
        return "\n".join(lines)

    def _flops_line(self) -> str:
        try:
            before, after = self.flops(pruned=False), self.flops()
        except UnsupportedModelError as error:
            return error.what
        return f"decoder prefill FLOPs (sample 0): {before:.4g} -> {after:.4g} (-{100 * (1 - after / before):.1f} %)"


class Run:
    """One applied method on one model. Made by :func:`tokenprune.apply`.

    Several threads may use the model at once. ``stages`` and ``report`` show the prefill that began last, on whatever
    thread.

    Attributes:
        method: The method.
        choice: The layers it prunes before, and why these.
    """

    def __init__(self, method: Method, choice: LayerChoice, family: str, num_layers: int, text_config: Any) -> None:
        self.method = method
        self.choice = choice
        self._family, self._num_layers, self._text_config = family, num_layers, text_config
        self._record = PrefillRecord()
        self._annotations = Annotations()
        self._own = threading.local()  # annotations that a thread gave itself

    @property
    def stages(self) -> list[StageResult]:
        """The stages of the last prefill; see :class:`StageResult`."""
        return self._record.stages

    @property
    def annotations(self) -> Annotations:
        """What holds for a prefill on this thread: what the thread gave itself, else what was given last."""
        annotations: Annotations = getattr(self._own, "annotations", self._annotations)
        return annotations

    def begin(self, record: PrefillRecord) -> None:
        """A prefill starts; the engine fills its record as it goes."""
        self._record = record

    def annotate(self, sample_ids: Sequence[int] | None = None, **values: Sequence[Tensor | Sequence[float]]) -> None:
        """Give the following prefills something that is not in the model.

        A thread that annotates sees its own annotations only. A thread that never does sees the latest ones.

        Args:
            sample_ids: One stable integer per sample; random scores depend on it and not on the batch. By default
                samples are counted in the order in which the run sees them.
            values: One vector of the length of its visual tokens per sample, e.g. ``foreground=[...]``.
        """
        ids = None if sample_ids is None else tuple(int(i) for i in sample_ids)
        vectors = {
            name: [torch.as_tensor(item, dtype=torch.float32) for item in items] for name, items in values.items()
        }
        self._annotations = self._own.annotations = Annotations(ids, vectors)

    @property
    def report(self) -> Report:
        """What the last prefill did."""
        record = self._record
        return Report(
            model=self._family,
            choice=self.choice,
            stages=list(record.stages),
            num_layers=self._num_layers,
            text_tokens=record.text_tokens,
            kv_bytes=record.kv_bytes,
            kv_bytes_unpruned=record.kv_bytes_unpruned,
            score_ms=sum(stop.since(start) for start, stop in record.clock),
            text_config=self._text_config,
        )
