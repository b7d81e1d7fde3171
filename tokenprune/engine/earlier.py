"""What came before a prompt that continues a conversation: earlier turns, whose keys and values are in the cache."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tokenprune.engine.cache import pruned_class, pruned_layer
from tokenprune.engine.caches.rows import CacheOwner, Rows
from tokenprune.errors import UnsupportedFeatureError, UnsupportedModelError
from tokenprune.ops.rows import behind_earlier, full_mask, prefill_mask, seen_columns, take, with_free_columns


@dataclass(frozen=True)
class EarlierTurns:
    """The turns before a prompt that brings new images.

    Attributes:
        cache: The KV cache, which some layers may hold pruned.
        past: Tokens of the conversation so far, dropped ones included.
        seen: Columns of the call's attention mask that are no padding, bool ``[batch or 1, keys]``; None without one.
        flash: Whether flash attention runs.
    """

    cache: Any
    past: int
    seen: Tensor | None
    flash: bool
    _before: dict[int, Rows | None] = field(default_factory=dict)

    @classmethod
    def of(cls, cache: Any, past: int, arguments: Mapping[str, Any], new: int, flash: bool) -> EarlierTurns:
        """The turns before a call.

        Args:
            cache: Its KV cache.
            past: Tokens of the conversation so far.
            arguments: The arguments of the model's forward, by name.
            new: Tokens that the call brings.
            flash: Whether flash attention runs.

        Raises:
            UnsupportedFeatureError: The attention mask does not cover the earlier turns.
        """
        mask = full_mask(arguments.get("attention_mask"))
        if mask is not None:
            _check_covers(mask, past, new)
        return cls(cache, past, seen_columns(mask), flash)

    def rows(self, layer: int) -> Rows | None:
        """The rows that a layer held before this turn; None where it was whole.

        Raises:
            UnsupportedModelError: The layer has no keys of its own in the cache.
        """
        if layer not in self._before:
            if layer >= len(self.cache.layers):
                raise UnsupportedModelError(
                    f"images in a later turn: layer {layer} has no KV cache of its own",
                    "prefill the whole conversation at once",
                )
            pruned = pruned_layer(self.cache, layer)
            self._before[layer] = None if pruned is None else pruned.rows
        return self._before[layer]

    def is_renumbered(self, layer: int) -> bool:
        """Whether some sample has new positions in a layer."""
        before = self.rows(layer)
        return before is not None and before.following is not None

    def held(self, layer: int) -> int:
        """Keys of earlier turns that a layer holds, before it runs in this turn."""
        cache_layer = self.cache.layers[layer]
        return pruned_class(cache_layer).held(cache_layer, self.past)

    def counted(self, layer: int) -> int:
        """Rows of earlier turns that went through a layer and were not dropped; those outside a window count, too."""
        before = self.rows(layer)
        return self.past - (0 if before is None else before.dropped)

    def stored_keys(self, layer: int) -> Tensor:
        """Keys of earlier turns, before a layer runs: after rotary embedding, ``[batch, kv_heads, held, head_dim]``."""
        cache_layer = self.cache.layers[layer]
        return pruned_class(cache_layer).stored_keys(cache_layer, self.past)

    def mask(self, mask: Tensor | None, layer: int, rows: Tensor, new: int, ragged: bool) -> Tensor | None:
        """The mask of the rows that are left, over the keys of earlier turns and over their own.

        Args:
            mask: The mask that the model made: ``[batch or 1, heads or 1, new, keys]`` for the unpruned cache, or
                ``[batch, keys]`` for flash attention, where None hides nothing.
            layer: The layer, which has not run in this turn.
            rows: Rows of the turn that are left, long ``[batch, kept]``, -1 for padding.
            new: Tokens of the turn.
            ragged: Whether any of the rows is padding.

        Raises:
            UnsupportedFeatureError: Other attention than flash attention was given no mask.
        """
        if mask is None and not self.flash:
            raise UnsupportedFeatureError(
                f"images in a later turn: layer {layer} got no attention mask", "prefill the whole conversation at once"
            )
        pruned, held, cache_layer = pruned_layer(self.cache, layer), self.held(layer), self.cache.layers[layer]
        if pruned is not None and (mask is not None or pruned.hides):
            mask = pruned.step_mask(mask, new, self.flash)
        columns = behind_earlier(rows, held)
        if mask is None:
            return columns >= 0 if ragged else None
        if mask.dim() == 2:
            return take(mask, columns, 1, 0).masked_fill(columns < 0, 0)
        free = pruned_class(cache_layer).free(cache_layer, held + rows.shape[1])
        return with_free_columns(prefill_mask(mask, rows.to(mask.device), held), free)

    def continued(
        self, layer: int, rows: Tensor, new: int, ragged: bool, owner: CacheOwner, following: Tensor | None
    ) -> Rows:
        """The rows of the conversation that a layer holds after this turn.

        Args:
            layer: The layer.
            rows: Rows of the turn that are left, long ``[batch, kept]``, -1 for padding.
            new: Tokens of the turn.
            ragged: Whether any of the rows is padding.
            owner: The block that prunes the turn.
            following: See :class:`Rows`.
        """
        before = self.rows(layer)
        if before is None:  # whole so far: a prompt of no tokens, and everything followed it
            before = Rows(rows.new_zeros(len(rows), 0), 0, False, owner)
        positions = (rows + self.past).masked_fill(rows < 0, -1)
        return before.with_turn(self.past, positions, self.past + new, ragged, owner, following)

    def begins(self, layer: int) -> Tensor | None:
        """Renumbered position of the turn's first token, long ``[batch]``; -1 for samples that were whole so far.

        None where all samples were whole in this layer.
        """
        before = self.rows(layer)
        if before is None or before.following is None:
            return None
        if self.seen is None:
            between: Tensor | int = self.past - before.length
        else:
            between = self.seen[:, before.length : self.past].sum(1).to(before.following.device)
        return (before.following + between).masked_fill(before.following < 0, -1)

    def cached(self, layers: int, batch: int) -> list[tuple[int, ...]]:
        """Tokens of earlier turns that each layer holds, padding left out, per sample: a transfer to the host.

        Args:
            layers: Decoder layers.
            batch: Samples.
        """
        counts: dict[int, Tensor] = {}
        per_layer = []
        for layer in range(layers):
            before = self.rows(layer)
            key = -1 if before is None else id(before.positions)
            if key not in counts:
                counts[key] = self._real(before, batch).cpu()
            per_layer.append(counts[key])
        return [tuple(row) for row in torch.stack(per_layer, 1).tolist()]

    def _real(self, before: Rows | None, batch: int) -> Tensor:
        """Tokens that layers with these rows hold, long ``[batch]``."""
        seen = torch.ones(1, self.past, dtype=torch.bool) if self.seen is None else self.seen[:, : self.past]
        seen = seen.expand(batch, -1)
        if before is None:
            return seen.sum(1)
        none = before.positions[:, :0]
        places = before.with_turn(self.past, none, self.past, False, before.owner, None).positions.to(seen.device)
        return (seen.gather(1, places.clamp(min=0)) & (places >= 0)).sum(1)


def _check_covers(mask: Tensor, past: int, new: int) -> None:
    """Refuse a mask of another form than ``[batch, past + new]`` or ``[batch or 1, heads or 1, new, past + new]``."""
    rows = new if mask.dim() == 2 else mask.shape[-2]
    if rows == new and mask.shape[-1] >= past + new:  # those of static caches are wider
        return
    raise UnsupportedFeatureError(
        f"a later turn: the call brings {new} tokens to a KV cache of {past}, which its attention mask"
        f" {tuple(mask.shape)} does not cover",
        "pass the tokens of the turn, and a mask of the whole conversation",
    )
