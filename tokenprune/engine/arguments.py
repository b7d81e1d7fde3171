"""A decoder layer's arguments on the rows that are left."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tokenprune.adapters.base import Adapter
from tokenprune.engine.earlier import EarlierTurns
from tokenprune.engine.renumber import Renumbering
from tokenprune.errors import UnsupportedFeatureError, UnsupportedModelError
from tokenprune.ops.rows import causal_mask, prefill_mask, take, take_nested, with_free_columns


@dataclass
class CompactArguments:
    """Cuts the arguments of the layers from one stage on. All of these layers get the same few tensors, cut once.

    Attributes:
        adapter: The model's adapter.
        rows: Position in the unpruned sequence of each row that is left, long ``[batch, rows]``, -1 for padding.
        width: Length of the unpruned sequence.
        ragged: Whether any row is padding (known on the host).
        dtype: Of the hidden states: masks for eager attention are additive.
        renumbering: Tells what gives the rows new positions in a layer; None where they keep theirs.
        earlier: The turns before this one; None in the first.
    """

    adapter: Adapter
    rows: Tensor
    width: int
    ragged: bool
    dtype: torch.dtype
    renumbering: Callable[[int], Renumbering] | None = None
    earlier: EarlierTurns | None = None
    _made: dict[tuple[Any, ...], tuple[Any, Any]] = field(default_factory=dict)

    def cut(self, layer: int, others: Mapping[str, Any], free: int = 0) -> dict[str, Any]:
        """All arguments of a layer but its hidden states, for the rows that are left.

        Args:
            layer: The layer.
            others: The arguments by name, as the model gave them.
            free: Rows behind the prompt that the keys of the layer have in a static cache.

        Raises:
            UnsupportedModelError: An argument seems to follow the sequence, and nobody knows how.
            UnsupportedFeatureError: The mask is of a kind that cannot be cut.
        """
        names = self.adapter.layer_signature
        moved = None if self.renumbering is None else self.renumbering(layer)
        cut: dict[str, Any] = {}
        for name, value in others.items():
            if name == names.attention_mask:
                shared = (name, free, *self._keys(layer))
                cut[name] = self._once(shared, value, self._mask, layer, others, free)
            elif name.startswith(names.position_embeddings):
                cut[name] = self._once((name, id(moved)), value, self._embeddings, moved)
            elif not isinstance(value, Tensor):
                self._check_unknown(name, value)
                cut[name] = value
            elif name == names.position_ids:
                # flash attention would take gaps in the positions for several packed sequences
                cut[name] = None if self._flash else self._once((name, id(moved)), value, self._positions, moved)
            elif name == "cache_position":
                cut[name] = value[self.rows[0].clamp(min=0).to(value.device)]
            elif name in self.adapter.sequence_kwargs:
                cut[name] = self._once((name,), value, take, self.rows, self.adapter.sequence_kwargs[name], 0)
            else:
                self._check_unknown(name, value)
                cut[name] = value
        if moved is not None and not any(name.startswith(names.position_embeddings) for name in others):
            raise UnsupportedModelError(
                f"layers of {type(self.adapter.model).__name__} are given no {names.position_embeddings}",
                "use positions: original: these layers cannot be renumbered",
            )
        if names.attention_mask not in others:
            cut[names.attention_mask] = self._mask(None, layer, others, free)
        return cut

    def _embeddings(self, value: Any, moved: Renumbering | None) -> Any:
        return take_nested(value, self.rows) if moved is None else moved.embeddings(value)

    def _positions(self, value: Tensor, moved: Renumbering | None) -> Tensor:
        return take(value, self.rows, -1, -2) if moved is None else moved.ids(value)

    def _keys(self, layer: int) -> tuple[int, ...]:
        """What the masks of layers with equal keys of earlier turns have in common."""
        if self.earlier is None:
            return ()
        return id(self.earlier.rows(layer)), self.earlier.held(layer)

    def _check_unknown(self, name: str, value: Any) -> None:
        """Refuse an argument that seems to follow the sequence: a tensor, or a tuple of them like cosines and sines."""
        for tensor in value if isinstance(value, tuple) else (value,):
            if isinstance(tensor, Tensor) and self.width > 1 and self.width in tensor.shape[:3]:
                raise UnsupportedModelError(
                    f"layers of {type(self.adapter.model).__name__} get {name!r} {tuple(tensor.shape)}, which seems to"
                    f" follow the {self.width} tokens of the sequence",
                    "write an adapter that overrides layer_signature (mask, rotary embedding, positions) or"
                    " sequence_kwargs (anything else)",
                )

    @property
    def _flash(self) -> bool:
        return "flash" in self.adapter.stack.attention_implementation

    def _once(self, shared: tuple[Any, ...], value: Any, make: Callable[..., Any], *arguments: Any) -> Any:
        """Call ``make(value)`` once per distinct object and reuse the result in all layers that share it."""
        key = (*shared, id(value))
        if key not in self._made:
            self._made[key] = (value, make(value, *arguments))  # the value is kept, so that its id stays its own
        return self._made[key][1]

    def _mask(self, mask: Any, layer: int, others: Mapping[str, Any], free: int) -> Tensor | None:
        if mask is not None and (not isinstance(mask, Tensor) or mask.dim() not in (2, 4)):
            raise UnsupportedFeatureError(
                f"layer {layer} got a mask of type {type(mask).__name__}", "use sdpa, eager or flash_attention_2"
            )
        if self.earlier is not None:
            return self.earlier.mask(mask, layer, self.rows, self.width, self.ragged)
        if mask is None:
            return self._missing_mask(is_causal(self.adapter, layer, others), free)
        rows = self.rows.to(mask.device)
        if mask.dim() == 2:
            return take(mask, rows, 1, 0).masked_fill(rows < 0, 0)
        return with_free_columns(prefill_mask(mask, rows), free)

    def _missing_mask(self, causal: bool, free: int) -> Tensor | None:
        """A mask where the model made none: only what nobody may see needs one."""
        if not self.ragged and (causal or not free):  # free rows are later than all of the prompt
            return None
        if self._flash:
            return self.rows >= 0
        visible = with_free_columns(causal_mask(self.rows, causal), free)
        if self.adapter.stack.attention_implementation == "sdpa":
            return visible
        hidden = torch.finfo(self.dtype).min
        return torch.zeros_like(visible, dtype=self.dtype).masked_fill(~visible, hidden)


def is_causal(adapter: Adapter, layer: int, arguments: Mapping[str, Any]) -> bool:
    """Whether the layer masks later tokens by itself when it gets no mask."""
    causal = arguments.get("is_causal")
    return bool(getattr(adapter.stack.attention(layer), "is_causal", True) if causal is None else causal)
