"""The rows of a prompt that a pruned cache holds, and the block that pruned it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor

from tokenprune.core.call_arguments import CACHE_NAMES
from tokenprune.errors import UnsupportedFeatureError
from tokenprune.ops.rows import hidden_value, take


class RunningCalls(Protocol):
    """The calls of a thread, as a cache sees them."""

    calls: Any  # empty where no call of the model is running


class CacheOwner:
    """The ``apply`` block that pruned a cache. Copies of the cache share it.

    Args:
        thread: Holds the calls of the model that run on this thread and that the block follows.
    """

    def __init__(self, thread: RunningCalls | None) -> None:
        self.thread = thread

    def end(self) -> None:
        """End the block: its caches cannot be used from now on."""
        self.thread = None

    def check(self) -> None:
        """Refuse to extend a cache where nobody cuts the masks to its keys.

        Raises:
            UnsupportedFeatureError: The block has ended, or the model was called in a way that the block does not
                follow: by its layers, or with the cache where nobody sees it.
        """
        if self.thread is None:
            raise UnsupportedFeatureError(
                "this KV cache was pruned inside an apply block that has ended",
                "finish the generation inside the block, or prefill again without a cache",
            )
        if not self.thread.calls:
            raise UnsupportedFeatureError(
                "a pruned KV cache was used outside a call of the model that apply was given",
                "call the model itself, not its layers",
            )
        if not self.thread.calls[-1].continues_pruned:
            raise UnsupportedFeatureError(
                "the model goes on with a pruned KV cache that was not among the arguments of its call: nobody cuts the"
                " masks to its keys",
                f"pass the cache itself, as {' or '.join(CACHE_NAMES)}",
            )

    def __deepcopy__(self, memo: dict[int, Any]) -> CacheOwner:
        return self

    def __reduce__(self) -> Any:
        return _ended, ()


def _ended() -> CacheOwner:
    """The owner of a pickled cache: its block is not there any more."""
    return CacheOwner(None)


@dataclass(frozen=True)
class Rows:
    """The rows of the prompt that a pruned layer's cache holds.

    Attributes:
        positions: Unpruned position of each cached prompt row, long ``[batch, kept]``, -1 for padding.
        length: Unpruned length of the prompt.
        ragged: Whether any row is padding (known on the host).
        owner: The block that pruned it.
        following: Position of the first token after the prompt where positions are renumbered, long ``[batch]``; -1 for
            samples that keep their positions, None where all do.
    """

    positions: Tensor
    length: int
    ragged: bool
    owner: CacheOwner
    following: Tensor | None = None
    _columns: dict[tuple[int, int], Tensor] = field(default_factory=dict, init=False, compare=False)

    @property
    def dropped(self) -> int:
        """Rows by which the cache is shorter than the sequence."""
        return self.length - self.positions.shape[1]

    @cached_property
    def padding(self) -> Tensor:
        """Rows that are padding, bool ``[batch, kept]``."""
        return self.positions < 0

    def with_turn(
        self, past: int, positions: Tensor, length: int, ragged: bool, owner: CacheOwner, following: Tensor | None
    ) -> Rows:
        """The rows when a further turn has been pruned, too: all before it belong to the prompt from then on.

        Args:
            past: Tokens of the conversation before the turn.
            positions: Unpruned positions of the turn's rows that are left, long ``[batch, kept]``, -1 for padding.
            length: Tokens of the conversation, the turn included.
            ragged: Whether any row of the turn is padding.
            owner: The block that pruned it.
            following: See :class:`Rows`.
        """
        between = torch.arange(self.length, past, device=positions.device).expand(len(positions), -1)
        every = torch.cat([self.positions, between, positions], dim=1)
        return Rows(every, length, self.ragged or ragged, owner, following)

    def of_samples(self, change: Callable[[Tensor], Tensor]) -> Rows:
        """The rows of other samples; ``change`` picks or repeats along the batch axis."""
        following = None if self.following is None else change(self.following)
        return replace(self, positions=change(self.positions), following=following)

    def cut(self, mask: Tensor) -> Tensor:
        """The columns of the kept rows and of all that followed the prompt, of a mask that covers the whole sequence.

        Args:
            mask: ``[batch or 1, heads or 1, new, length + ...]``, or ``[batch, length + ...]`` for flash attention.

        Returns:
            The mask over the keys that the cache holds.
        """
        prompt = take(mask[..., : self.length], self.positions, -1, 0)
        if self.ragged:
            absent = self.padding if mask.dim() == 2 else self.padding[:, None, None, :]
            prompt = prompt.masked_fill(absent, hidden_value(mask))
        rest = mask[..., self.length :]
        return torch.cat([prompt, rest.expand(*prompt.shape[:-1], -1)], dim=-1)

    def columns(self, keys: int, total: int) -> Tensor:
        """Unpruned position of each key of a layer that has room for more; the layers of a stage share one tensor.

        Args:
            keys: Keys of the layer: those of the prompt, and room for later tokens.
            total: Tokens of the longest sequence.

        Returns:
            Long ``[batch, keys]``; -1 for padding, and for room that nothing will fill.
        """
        if (keys, total) not in self._columns:
            batch, kept = self.positions.shape
            later = torch.arange(self.length, self.length + keys - kept, device=self.positions.device)
            later = later.masked_fill(later >= total, -1).expand(batch, -1)
            self._columns[keys, total] = torch.cat([self.positions, later], dim=1)
        return self._columns[keys, total]
