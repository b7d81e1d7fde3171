"""The record of one prefill: the tokens that were kept at each stage, and the time that choosing them took."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from tokenprune.adapters.views import PlacedItem
from tokenprune.core.clock import Moment
from tokenprune.ops.gather import marked_first


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
