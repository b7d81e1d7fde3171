"""The record of one prefill, and its summary: the kept tokens, FLOPs, bytes and time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from tokenprune.adapters.views import PlacedItem
from tokenprune.budgets.base import Schedule
from tokenprune.budgets.layer_average import layer_average
from tokenprune.core.clock import Moment
from tokenprune.errors import UnsupportedModelError
from tokenprune.flops.decoder import prefill_flops
from tokenprune.ops.gather import marked_first
from tokenprune.selectors.base import LayerChoice


@dataclass(frozen=True)
class StageTokens:
    """The visual tokens that entered a stage, in the order of the prompt. Tensors stay where the model put them.

    Attributes:
        positions: Position of each token in the unpruned sequence, long ``[batch, tokens]``.
        real: Entries that are tokens, bool ``[batch, tokens]``; positions of the others mean nothing.
        keep: Tokens that survived, bool ``[batch, tokens]``.
        scores: The pruner's preference, floating ``[batch, tokens]``, as in
            :class:`~tokenprune.pruners.base.Selection`; None if it scores no single tokens.
        merged: The kept token that each dropped one was merged into, as its index here, long ``[batch, tokens]``; -1
            for none. None if the pruner merges nothing.
    """

    positions: Tensor
    real: Tensor
    keep: Tensor
    scores: Tensor | None = None
    merged: Tensor | None = None

    @classmethod
    def every(cls, mask: Tensor) -> StageTokens:
        """All visual tokens of a prompt, of which none is dropped.

        Args:
            mask: Where they are, bool ``[batch, seq]``.
        """
        return cls(torch.arange(mask.shape[1], device=mask.device).expand_as(mask), mask, mask)

    def survivors(self) -> StageTokens:
        """The kept tokens, as they enter a later stage that drops nothing."""
        return StageTokens(self.positions, self.keep, self.keep)


@dataclass
class StageResult:
    """One pruning stage of the last prefill.

    Attributes:
        layer: Tokens were dropped before this layer.
        before: Visual tokens per sample before the stage.
        after: Visual tokens per sample after the stage.
        rows: Position in the unpruned sequence of each row from ``layer`` on, long ``[batch, rows]``; -1 for the
            padding of samples that kept fewer tokens. None if nothing was pruned.
        reason: Why nothing was pruned; None if tokens were pruned.
        tokens: The tokens that entered the stage, their scores, and whether they survived; None where the
            prompt held no visual tokens.
    """

    layer: int
    before: list[int]
    after: list[int]
    rows: Tensor | None = None
    reason: str | None = None
    tokens: StageTokens | None = field(default=None, repr=False)

    @cached_property
    def kept(self) -> Tensor:
        """Unpruned positions of the kept visual tokens, long ``[batch, max_kept]``, ascending, -1 padded.

        After a stage that dropped nothing these are all visual tokens that entered it.
        """
        if self.tokens is None:
            return torch.full((len(self.after), 0), -1)
        keep, width = self.tokens.keep, max(self.after, default=0)
        place, kept = marked_first(keep, width)
        return self.tokens.positions.gather(1, place).masked_fill(~kept, -1)


@dataclass(frozen=True)
class Targets:
    """The tokens that a forward with ``labels`` has to predict. Tensors stay where the labels are.

    Attributes:
        given: Targets per sample of the unpruned prompt, long ``[batch]``.
        lost: Those whose predicting row was dropped, which do not count in the loss, long ``[batch]``.
    """

    given: Tensor
    lost: Tensor


@dataclass
class PrefillRecord:
    """Record of one prefill, which the engine fills while the model runs.

    Attributes:
        text_tokens: Tokens per sample that are not visual, padding included.
        stages: The stages that have been completed.
        clock: Start and end of scoring and selecting at each stage.
        kv_bytes: Bytes of the KV cache after the prefill; 0 without a cache.
        kv_bytes_unpruned: Bytes that the cache would have without pruning.
        kv_rounded: How a cache stores what it does not store as it was computed.
        places: Tells where the visual tokens lie on the pictures, item by item for each sample; None where the family's
            adapter knows no grid. Only pictures need it, so it is found out when it is asked for.
        targets: What the model had to predict; None without ``labels``.
        cached: Keys of earlier turns that each layer's cache held before the prefill; empty in a first turn.
    """

    text_tokens: list[int] = field(default_factory=list)
    stages: list[StageResult] = field(default_factory=list)
    clock: list[tuple[Moment, Moment]] = field(default_factory=list)
    kv_bytes: int = 0
    kv_bytes_unpruned: int = 0
    kv_rounded: str | None = None
    places: Callable[[], Sequence[Sequence[PlacedItem]] | None] = lambda: None
    targets: Targets | None = None
    cached: list[int] = field(default_factory=list)


@dataclass
class Report:
    """Summary of the last prefill. ``print(report)`` shows it.

    Attributes:
        model: Family of the model.
        choice: The layers before which tokens are dropped, and why these were chosen.
        stages: The stages; see :class:`StageResult`.
        num_layers: Decoder layers.
        text_tokens: Tokens per sample that are not visual, padding included.
        kv_bytes: Bytes of the KV cache after the prefill; 0 without a cache.
        kv_bytes_unpruned: Bytes that the cache would have without pruning.
        score_ms: Milliseconds spent on scoring and selecting in all stages.
        text_config: Config of the decoder, from which FLOPs are computed.
        cuts_earlier: Whether the caches of the layers before each stage are cut after the prefill.
        targets: Tokens per sample that the labels ask for; None without ``labels``.
        lost_targets: Those of them whose predicting row was dropped: they do not count in the loss.
        kv_rounded: How the cache stores what it does not store as it was computed, e.g. in 8-bit floats: results differ
            from exact ones as those of the unpruned model with such a cache do.
        cached: Keys of earlier turns that each layer's cache held before the prefill, padding included; empty in a
            first turn. Tokens and FLOPs of the report are those of the last turn, on these keys; the bytes are those
            of the whole cache.
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
    cuts_earlier: bool = False
    targets: list[int] | None = None
    lost_targets: list[int] | None = None
    kv_rounded: str | None = None
    cached: list[int] = field(default_factory=list)

    @property
    def before(self) -> list[int]:
        """Visual tokens per sample before the first stage."""
        return self.stages[0].before if self.stages else []

    @property
    def after(self) -> list[int]:
        """Visual tokens per sample after the last stage."""
        return self.stages[-1].after if self.stages else []

    @property
    def reason(self) -> str | None:
        """Why nothing was pruned; None if tokens were pruned."""
        reasons = [stage.reason for stage in self.stages]
        return reasons[0] if reasons and all(reasons) else None

    def layer_average(self, sample: int = 0) -> float:
        """Visual tokens of a sample averaged over all decoder layers."""
        schedule = Schedule(tuple(stage.layer for stage in self.stages), self.num_layers)
        return layer_average(self.before[sample], tuple(stage.after[sample] for stage in self.stages), schedule)

    def tokens_per_layer(self, sample: int = 0, pruned: bool = True) -> list[int]:
        """Tokens of a sample, text and visual, that each decoder layer processes in the prefill."""
        counts = [self.before[sample]] * self.num_layers
        for stage in self.stages if pruned else ():
            counts[stage.layer :] = [stage.after[sample]] * (self.num_layers - stage.layer)
        return [count + self.text_tokens[sample] for count in counts]

    def cached_per_layer(self, sample: int = 0) -> list[int]:
        """Tokens of a sample, text and visual, that the KV cache of each decoder layer holds after the prefill."""
        counts = self.tokens_per_layer(sample)
        counts = [counts[-1]] * len(counts) if self.cuts_earlier else counts
        return [count + held for count, held in zip(counts, self.cached, strict=True)] if self.cached else counts

    def flops(self, sample: int = 0, pruned: bool = True) -> int:
        """FLOPs of the decoder's prefill of one sample, closed form; see :mod:`tokenprune.flops.decoder`.

        Raises:
            UnsupportedModelError: There is no closed form for this family's layers.
        """
        tokens = self.tokens_per_layer(sample, pruned)
        visual = [count - self.text_tokens[sample] for count in tokens]
        return prefill_flops(self.text_config, tokens, visual, self.cached)

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """What a notebook shows."""
        printer.text(str(self))

    def __str__(self) -> str:
        if not self.stages:
            return f"{self.model}: no prefill yet"
        lines = [f"{self.model}: layers {list(self.choice.layers)} ({self.choice.reason})"]
        if self.cached:
            lines.append(f"  a later turn: the caches of the layers held {_spread(self.cached)} tokens")
        for stage in self.stages:
            lines.append(
                f"  layer {stage.layer}: " + (stage.reason or f"visual tokens {stage.before} -> {stage.after}")
            )
        if self.reason is None:
            lines.append(f"  {self._flops_line()}")
            if self.kv_bytes:
                rounded = "" if self.kv_rounded is None else f", rounded to {self.kv_rounded}"
                lines.append(f"  KV cache: {self.kv_bytes_unpruned:,} -> {self.kv_bytes:,} bytes{rounded}")
            lines.append(f"  scoring and selecting: {self.score_ms:.2f} ms")
        if self.targets is not None:
            lines.append(f"  targets lost with dropped rows: {self.lost_targets} of {self.targets}")
        return "\n".join(lines)

    def _flops_line(self) -> str:
        try:
            before, after = self.flops(pruned=False), self.flops()
        except UnsupportedModelError as error:
            return error.what
        return f"decoder prefill FLOPs (sample 0): {before:.4g} -> {after:.4g} (-{100 * (1 - after / before):.1f} %)"


def _spread(counts: list[int]) -> str:
    """The smallest and the largest of some counts, e.g. ``12 to 40``."""
    least, most = min(counts), max(counts)
    return f"{least:,}" if least == most else f"{least:,} to {most:,}"
