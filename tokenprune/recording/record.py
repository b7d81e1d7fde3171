"""What one prefill leaves behind: the tokens that were kept at each stage, and how long choosing them took."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tokenprune.adapters.views import PlacedItem
from tokenprune.pictures.look import StageLook


class Clock:
    """A point in time, on the host or in the device's stream. Recording it does not wait for the device."""

    def __init__(self, device: torch.device) -> None:
        self.event: Any = None
        self.host = time.perf_counter()
        if device.type == "cuda":
            self.event = torch.cuda.Event(enable_timing=True)
            self.event.record()

    def since(self, start: Clock) -> float:
        """Milliseconds since ``start``. This call waits for the device."""
        if self.event is None:
            return (self.host - start.host) * 1e3
        self.event.synchronize()
        return float(start.event.elapsed_time(self.event))


@dataclass(frozen=True)
class StageTokens:
    """The visual tokens that entered a stage, in the order of the prompt. Tensors stay where the model put them.

    Attributes:
        positions: Position of each token in the unpruned sequence, long ``[batch, tokens]``.
        real: Which entries are tokens, bool ``[batch, tokens]``; positions of the others mean nothing.
        keep: Which tokens survived, bool ``[batch, tokens]``.
        scores: What the pruner preferred, floating ``[batch, tokens]``, as in
            :class:`~tokenprune.pruners.base.Selection`; None if it scores no single tokens.
        merged: The kept token that each dropped one was merged into, as its index here, long ``[batch, tokens]``; -1
            for none. None if the pruner merges nothing.
    """

    positions: Tensor
    real: Tensor
    keep: Tensor
    scores: Tensor | None = None
    merged: Tensor | None = None

    def survivors(self) -> StageTokens:
        """The same tokens as a later stage sees them that drops nothing."""
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
        tokens: The tokens that entered the stage, what the pruner saw in them, and which survived; None where the
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
        order = (~keep).int().argsort(dim=1, stable=True)[:, :width]
        return self.tokens.positions.gather(1, order).masked_fill(~keep.gather(1, order), -1)

    def look(self, sample: int, places: NDArray[np.int64]) -> StageLook:
        """What can be drawn of the stage.

        Args:
            sample: Number of the sample.
            places: Positions of all its visual tokens in the unpruned sequence, ascending.
        """
        tokens = self.tokens
        assert tokens is not None
        real = tokens.real[sample].cpu().numpy()
        at = np.searchsorted(places, tokens.positions[sample].cpu().numpy()[real])  # of the tokens that entered

        def spread(values: NDArray[Any], empty: Any) -> NDArray[Any]:
            out = np.full(len(places), empty, dtype=values.dtype)
            out[at] = values
            return out

        # a budget that drops everything leaves nothing to score
        scores, merged = tokens.scores if self.after[sample] else None, tokens.merged
        into = None if merged is None else merged[sample].cpu().numpy()
        entry = np.full(len(real), -1)
        entry[real] = at
        return StageLook(
            self.layer,
            spread(tokens.keep[sample].cpu().numpy()[real], False),
            None if scores is None else spread(scores[sample].float().cpu().numpy()[real], np.nan),
            None if into is None else spread(np.where(into[real] < 0, -1, entry[into[real]]), -1),
            self.reason,
        )


@dataclass
class PrefillRecord:
    """Record of one prefill, which the engine fills while the model runs.

    Attributes:
        text_tokens: Tokens per sample that are not visual, padding included.
        stages: The stages that have been completed.
        clock: Start and end of scoring and selecting at each stage.
        kv_bytes: Bytes of the KV cache after the prefill; 0 without a cache.
        kv_bytes_unpruned: Bytes that the cache would have without pruning.
        places: Tells where the visual tokens lie on the pictures, item by item for each sample; None where the family's
            adapter knows no grid. Only pictures need it, so it is found out when it is asked for.
    """

    text_tokens: list[int] = field(default_factory=list)
    stages: list[StageResult] = field(default_factory=list)
    clock: list[tuple[Clock, Clock]] = field(default_factory=list)
    kv_bytes: int = 0
    kv_bytes_unpruned: int = 0
    places: Callable[[], Sequence[Sequence[PlacedItem]] | None] = lambda: None
