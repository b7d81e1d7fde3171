"""Contexts from plain tensors: what a scorer or pruner sees, without a model. For tests, and for other engines.

```python
ctx = make_context(hidden, visual, keep=4, query=query, needs={"query"})
scores = MatrixEntropy().score(ctx)  # [batch, n_visual]
```
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tokenprune.context import PruneContext
from tokenprune.errors import ConfigError, ScoreError, UnsupportedModelError
from tokenprune.ops.frames import frame_sizes, number_frames
from tokenprune.ops.per_image import PerImage
from tokenprune.signals import SIGNALS, AttentionProbe, DeclaredSignals, Prompt, TowerSignals, check_needs
from tokenprune.visual_axis import VisualAxis


@dataclass(frozen=True)
class TowerTensors:
    """One layer of a vision tower, given row by row; see :class:`tokenprune.signals.TowerSignals`.

    Attributes:
        attention: ``[batch, rows]``.
        received: ``[batch, rows]``.
        key: ``[batch, rows, head_dim]``.
    """

    attention: Tensor
    received: Tensor
    key: Tensor


@dataclass(frozen=True)
class TensorSignals:
    """See :class:`tokenprune.signals.Signals`; every tensor is given for all rows.

    Attributes:
        axis: The visual tokens.
        row_mask: Rows that are no padding, bool ``[batch, rows]``.
        is_visual: Rows that are visual tokens, bool ``[batch, rows]``.
        image: Image of each row, long ``[batch, rows]``.
        images: The most images that a sample has.
        layer_states: ``query``, ``key``, ``value`` as ``[batch, rows, heads, head_dim]``.
        embeddings: What entered layer 0, ``[batch, rows, dim]``, or None.
        places: (frame, row, column) of each row, long ``[batch, rows, 3]``, or None.
        tower_layers: Layers of the vision tower.
        annotations: Vectors ``[batch, rows]`` by name.
    """

    axis: VisualAxis
    row_mask: Tensor
    is_visual: Tensor
    image: Tensor
    images: int
    layer_states: Mapping[str, Tensor] = field(default_factory=dict)
    embeddings: Tensor | None = None
    places: Tensor | None = None
    tower_layers: Mapping[int, TowerTensors] = field(default_factory=dict)
    annotations: Mapping[str, Tensor] = field(default_factory=dict)

    def states(self, name: str) -> Tensor:
        """See :meth:`tokenprune.signals.Signals.states`."""
        if name not in self.layer_states:
            raise ScoreError(f"this context has no {name} states", f"give make_context(..., {name}=...)")
        return self.layer_states[name]

    def attention(self) -> AttentionProbe:
        """Causal attention without rotary embedding; see :meth:`tokenprune.signals.Signals.attention`."""
        query, key = self.states("query"), self.states("key")

        def visible(index: Tensor) -> Tensor:
            order = torch.arange(query.shape[1], device=query.device)
            return (order <= index[:, :, None]) & self.row_mask[:, None]

        return AttentionProbe(query, key, lambda q, k, index: (q, k), visible, query.shape[-1] ** -0.5)

    def prompt(self) -> Prompt:
        """See :meth:`tokenprune.signals.Signals.prompt`."""
        if self.embeddings is None:
            raise ScoreError("this context has no embeddings", "give make_context(..., embeddings=...)")
        rows = torch.arange(self.row_mask.shape[1], device=self.row_mask.device).expand_as(self.row_mask)
        return Prompt(self.embeddings, self.is_visual, self.row_mask & ~self.is_visual, rows)

    def grid(self) -> Tensor:
        """See :meth:`tokenprune.signals.Signals.grid`."""
        return self._padded(self._places())

    def frames(self) -> Tensor:
        """See :meth:`tokenprune.signals.Signals.frames`."""
        places = self._places()
        image = self.image.masked_fill(~self.is_visual, -1)
        numbers = number_frames(places[..., 0].masked_fill(~self.is_visual, -1), image, self.images)
        return self._padded(torch.cat([numbers[..., None], frame_sizes(numbers, places)], -1))

    def tower(self, layer: int) -> TowerSignals:
        """See :meth:`tokenprune.signals.Signals.tower`."""
        if layer not in self.tower_layers:
            raise ScoreError(
                f"this context has no tower layer {layer}", f"give make_context(..., tower={{{layer}: ...}})"
            )
        rows = self.tower_layers[layer]
        return TowerTensors(*(self.axis.gather(values) for values in (rows.attention, rows.received, rows.key)))

    def annotation(self, name: str) -> Tensor:
        """See :meth:`tokenprune.signals.Signals.annotation`."""
        if name not in self.annotations:
            raise ScoreError(f"this context has no annotation {name!r}", "give make_context(..., annotations={...})")
        return self.axis.gather(self.annotations[name]).masked_fill(~self.axis.mask, 0.0)

    def _places(self) -> Tensor:
        if self.places is None:
            raise UnsupportedModelError("this context has no token grid", "give make_context(..., grid=...)")
        return self.places

    def _padded(self, values: Tensor) -> Tensor:
        return self.axis.gather(values).masked_fill(~self.axis.mask[:, :, None], -1)


def make_context(
    hidden: Tensor,
    visual: Tensor | None = None,
    *,
    keep: int | Sequence[Sequence[int]] = 1,
    images: Tensor | None = None,
    sizes: Sequence[Sequence[int]] | None = None,
    row_mask: Tensor | None = None,
    query: Tensor | None = None,
    key: Tensor | None = None,
    value: Tensor | None = None,
    embeddings: Tensor | None = None,
    grid: Tensor | None = None,
    tower: Mapping[int, TowerTensors] | None = None,
    annotations: Mapping[str, Tensor] | None = None,
    needs: Collection[str] = SIGNALS,
    layer: int = 1,
    num_layers: int = 2,
    num_heads: int = 1,
    sample_ids: Sequence[int] | None = None,
    open_ended: bool = False,
) -> PruneContext:
    """The context of one stage, from plain tensors. All of them are given for all rows, text included.

    Args:
        hidden: Hidden states that enter the stage's layer, ``[batch, rows, dim]``.
        visual: Which rows are visual tokens, bool ``[batch, rows]``; all by default.
        keep: Tokens to keep of every image: one number, or one list per sample.
        images: Image that each row belongs to, counted from 0 in each sample, long ``[batch, rows]``; by default a
            sample has one image.
        sizes: Visual tokens per sample and image; only needed where ``visual`` has no values (the meta device).
        row_mask: Rows that are no padding, bool ``[batch, rows]``; all by default.
        query: Query states before rotary embedding, ``[batch, rows, heads, head_dim]``.
        key: Key states, ``[batch, rows, kv_heads, head_dim]``.
        value: Value states, as ``key``.
        embeddings: What entered layer 0, ``[batch, rows, dim]``.
        grid: (frame, row, column) of each row, long ``[batch, rows, 3]``; -1 for rows without a place.
        tower: Layers of the vision tower by their number.
        annotations: Vectors ``[batch, rows]`` by name.
        needs: Signals that the component may read; all by default.
        layer: The layer before which tokens are dropped.
        num_layers: Layers of the decoder.
        num_heads: Query heads of the decoder.
        sample_ids: One integer per sample; 0, 1, 2 ... by default.
        open_ended: Whether the pruner decides how many survive; ``keep`` is then the fewest.

    Raises:
        ConfigError: A shape does not fit, or ``keep`` names other images than there are.
    """
    batch, rows = hidden.shape[:2]
    visual = torch.ones(batch, rows, dtype=torch.bool, device=hidden.device) if visual is None else visual
    image = torch.zeros(batch, rows, dtype=torch.long, device=hidden.device) if images is None else images
    row_mask = torch.ones_like(visual) if row_mask is None else row_mask
    states = {name: given for name, given in (("query", query), ("key", key), ("value", value)) if given is not None}
    for name, given in {**states, "visual": visual, "images": image, "row_mask": row_mask}.items():
        if given.shape[:2] != (batch, rows):
            raise ConfigError(f"{name} has shape {tuple(given.shape)}", f"give [{batch}, {rows}, ...] as hidden")
    check_needs(frozenset(needs), "make_context")
    counts = _count(visual, image) if sizes is None else [list(row) for row in sizes]
    quotas = [[keep] * len(row) for row in counts] if isinstance(keep, int) else [list(row) for row in keep]
    if [len(row) for row in quotas] != [len(row) for row in counts]:
        raise ConfigError(f"keep is {quotas} for images of {counts} tokens", "give one number per image")
    axis = VisualAxis.of(visual, image, max(map(sum, counts)))
    most = max(map(len, counts))
    tower = tower or {}
    signals = TensorSignals(axis, row_mask, visual, image, most, states, embeddings, grid, tower, annotations or {})
    return PruneContext(
        layer=layer,
        num_layers=num_layers,
        num_heads=num_heads,
        visual_mask=axis.mask,
        visual_rows=axis.rows,
        positions=axis.positions,
        per_image=PerImage(axis.images, counts, quotas),
        last_row=row_mask.int().cumsum(1).argmax(1),
        row_mask=row_mask,
        hidden_rows=hidden,
        sample_ids=tuple(range(batch) if sample_ids is None else sample_ids),
        signals=DeclaredSignals(signals, frozenset(needs), frozenset(tower)),
        target=tuple(map(sum, quotas)),
        open_ended=open_ended,
    )


def _count(visual: Tensor, image: Tensor) -> list[list[int]]:
    """Visual tokens per sample and image."""
    counts = []
    for is_visual, number in zip(visual, image, strict=True):
        counts.append(number[is_visual].bincount().tolist())
    return counts
