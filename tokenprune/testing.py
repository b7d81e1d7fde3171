"""Contexts from plain tensors: they call a scorer or a pruner without a model. For tests and for other engines.

```python
ctx = make_context(hidden, visual, keep=4, query=query, needs={"query"})
scores = MatrixEntropy().score(ctx)  # [batch, n_visual]
```
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from tokenprune.errors import ConfigError, ScoreError, UnsupportedModelError
from tokenprune.ops.frames import frame_sizes, number_frames
from tokenprune.ops.gather import rows_at
from tokenprune.ops.per_image import PerImage
from tokenprune.ops.vision import StateSource, TowerLayer
from tokenprune.signals.context import PruneContext
from tokenprune.signals.recorded_tower import RecordedTower
from tokenprune.signals.rows import Rows, VisualAxis
from tokenprune.signals.signals import (
    SIGNALS,
    AttentionProbe,
    DeclaredSignals,
    GatheredTower,
    Prompt,
    TowerSignals,
    check_needs,
)


@dataclass(frozen=True)
class TowerTensors:
    """Signals of one layer of a vision tower for all rows; see :class:`tokenprune.signals.signals.TowerSignals`.

    Attributes:
        attention: Attention of the class token, ``[batch, rows]``.
        received: Attention of all tokens of the tower, ``[batch, rows]``.
        key: Keys, mean over heads, ``[batch, rows, head_dim]``.
        features: States that leave the layer, ``[batch, rows, width]``.
        projector: Maps features to what enters the language model, ``[..., width]`` to ``[..., dim]``, or None.
        tiles: The tile of each visual token, per sample, long ``[tokens]`` on the host, or None.
        by_head: States by their source (``query``, ``key``, ``value``, ``hidden``), ``[batch, rows, heads, head_dim]``.
    """

    attention: Tensor
    received: Tensor
    key: Tensor
    features: Tensor
    projector: Callable[[Tensor], Tensor] | None = None
    tiles: Sequence[Tensor] | None = None
    by_head: Mapping[str, Tensor] = field(default_factory=dict)

    def states(self, source: StateSource) -> Tensor:
        """See :meth:`tokenprune.signals.signals.TowerSignals.states`."""
        if source not in self.by_head:
            raise ScoreError(
                f"this tower layer has no {source} states", f"pass TowerTensors(..., by_head={{{source!r}: ...}})"
            )
        return self.by_head[source].float()


def tower_signals(layer: TowerLayer, projector: Callable[[Tensor], Tensor] | None = None) -> TowerSignals:
    """One layer of a vision tower that ran for one sample without text; every value is computed when it is read.

    Args:
        layer: The layer, e.g. as :attr:`tokenprune.adapters.towers.TowerSite.read` makes it.
        projector: The model's projector, if it gets the states of this layer.
    """
    recorded = RecordedTower(layer, (layer.features,), 1, projector)
    return GatheredTower(recorded, lambda values: values.flatten(0, 1)[None])


@dataclass(frozen=True, kw_only=True)
class TensorSignals:
    """Implements :class:`tokenprune.signals.signals.Signals` by tensors of all rows.

    Attributes:
        axis: The visual axis.
        hidden_rows: Hidden states that enter the stage's layer, ``[batch, rows, dim]``.
        row_mask: Rows that are tokens and not padding, bool ``[batch, rows]``.
        is_visual: Rows that are visual tokens, bool ``[batch, rows]``.
        image: Image of each row, long ``[batch, rows]``.
        max_images: Largest number of images of a sample.
        layer_states: ``query``, ``key``, ``value`` as ``[batch, rows, heads, head_dim]``, and ``previous`` as
            ``[batch, rows, dim]``.
        embeddings: Input of layer 0, ``[batch, rows, dim]``, or None.
        row_grid: (frame, row, column) of each row, long ``[batch, rows, 3]``, or None.
        tower_layers: Layers of the vision tower.
        annotations: Vectors ``[batch, rows]`` by name.
        norm: The norm behind the last decoder layer, or None.
        ids: One integer per sample.
    """

    axis: VisualAxis
    hidden_rows: Tensor
    row_mask: Tensor
    is_visual: Tensor
    image: Tensor
    max_images: int
    layer_states: Mapping[str, Tensor] = field(default_factory=dict)
    embeddings: Tensor | None = None
    row_grid: Tensor | None = None
    tower_layers: Mapping[int, TowerSignals] = field(default_factory=dict)
    annotations: Mapping[str, Tensor] = field(default_factory=dict)
    norm: Callable[[Tensor], Tensor] | None = None
    ids: tuple[int, ...] = ()

    def hidden(self) -> Tensor:
        """See :meth:`tokenprune.signals.signals.Signals.hidden`."""
        return self.axis.gather(self.hidden_rows)

    def states(self, name: str) -> Tensor:
        """See :meth:`tokenprune.signals.signals.Signals.states`."""
        return self.axis.gather(self._given(name))

    def sequence(self) -> Rows:
        """See :meth:`tokenprune.signals.signals.Signals.sequence`."""
        return Rows(self.hidden_rows, self.row_mask, self.axis)

    def sample_ids(self) -> tuple[int, ...]:
        """See :meth:`tokenprune.signals.signals.Signals.sample_ids`."""
        return self.ids

    def _given(self, name: str) -> Tensor:
        """States of all rows."""
        if name not in self.layer_states:
            raise ScoreError(f"this context has no {name} states", f"pass make_context(..., {name}=...)")
        return self.layer_states[name]

    def attention(self) -> AttentionProbe:
        """Causal attention without rotary embedding; see :meth:`tokenprune.signals.signals.Signals.attention`."""
        query, key = self._given("query"), self._given("key")

        def visible(index: Tensor) -> Tensor:
            order = torch.arange(query.shape[1], device=query.device)
            return (order <= index[:, :, None]) & self.row_mask[:, None]

        return AttentionProbe(
            partial(rows_at, query), key, lambda q, k, index: (q, k), visible, query.shape[-1] ** -0.5
        )

    def entering(self) -> AttentionProbe:
        """Return that of :meth:`attention`: a context has one layer."""
        return self.attention()

    def final_norm(self) -> Callable[[Tensor], Tensor]:
        """See :meth:`tokenprune.signals.signals.Signals.final_norm`."""
        if self.norm is None:
            raise ScoreError("this context has no final norm", "pass make_context(..., final_norm=...)")
        return self.norm

    def prompt(self) -> Prompt:
        """See :meth:`tokenprune.signals.signals.Signals.prompt`."""
        if self.embeddings is None:
            raise ScoreError("this context has no embeddings", "pass make_context(..., embeddings=...)")
        rows = torch.arange(self.row_mask.shape[1], device=self.row_mask.device).expand_as(self.row_mask)
        return Prompt(self.embeddings, self.is_visual, self.row_mask & ~self.is_visual, rows)

    def grid(self) -> Tensor:
        """See :meth:`tokenprune.signals.signals.Signals.grid`."""
        return self._on_axis(self._required_grid())

    def frames(self) -> Tensor:
        """See :meth:`tokenprune.signals.signals.Signals.frames`."""
        grid = self._required_grid()
        image = self.image.masked_fill(~self.is_visual, -1)
        numbers = number_frames(grid[..., 0].masked_fill(~self.is_visual, -1), image, self.max_images)
        return self._on_axis(torch.cat([numbers[..., None], frame_sizes(numbers, grid)], -1))

    def frame_numbers(self) -> Sequence[Tensor]:
        """See :meth:`tokenprune.signals.signals.Signals.frame_numbers`."""
        numbers, mask = self.frames()[..., 0].cpu(), self.axis.mask.cpu()
        return [row[real] for row, real in zip(numbers, mask, strict=True)]

    def tower(self, layer: int) -> TowerSignals:
        """See :meth:`tokenprune.signals.signals.Signals.tower`."""
        if layer not in self.tower_layers:
            raise ScoreError(
                f"this context has no tower layer {layer}", f"pass make_context(..., tower={{{layer}: ...}})"
            )
        return GatheredTower(self.tower_layers[layer], self.axis.gather)

    def annotation(self, name: str) -> Tensor:
        """See :meth:`tokenprune.signals.signals.Signals.annotation`."""
        if name not in self.annotations:
            raise ScoreError(f"this context has no annotation {name!r}", "pass make_context(..., annotations={...})")
        return self.axis.gather(self.annotations[name]).masked_fill(~self.axis.mask, 0.0)

    def _required_grid(self) -> Tensor:
        if self.row_grid is None:
            raise UnsupportedModelError("this context has no token grid", "pass make_context(..., grid=...)")
        return self.row_grid

    def _on_axis(self, values: Tensor) -> Tensor:
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
    previous: Tensor | None = None,
    embeddings: Tensor | None = None,
    grid: Tensor | None = None,
    tower: Mapping[int, TowerSignals] | None = None,
    annotations: Mapping[str, Tensor] | None = None,
    final_norm: Callable[[Tensor], Tensor] | None = None,
    needs: Collection[str] = SIGNALS,
    layer: int = 1,
    num_layers: int = 2,
    num_heads: int = 1,
    sample_ids: Sequence[int] | None = None,
    open_ended: bool = False,
) -> PruneContext:
    """Make the context of one stage from plain tensors. All tensors have one entry per row, text included.

    Args:
        hidden: Hidden states that enter the stage's layer, ``[batch, rows, dim]``.
        visual: Rows that are visual tokens, bool ``[batch, rows]``; all by default.
        keep: Tokens to keep of each image: one number for all images, or one list of numbers per sample.
        images: Image of each row, counted from 0 in each sample, long ``[batch, rows]``; by default a sample has one
            image.
        sizes: Visual tokens per sample and image; only needed if ``visual`` has no values (meta device).
        row_mask: Rows that are tokens and not padding, bool ``[batch, rows]``; all by default.
        query: Query states before rotary embedding, ``[batch, rows, heads, head_dim]``.
        key: Key states, ``[batch, rows, kv_heads, head_dim]``.
        value: Value states, ``[batch, rows, kv_heads, head_dim]``.
        previous: Hidden states that entered the layer before, ``[batch, rows, dim]``.
        embeddings: Input of layer 0, ``[batch, rows, dim]``.
        grid: (frame, row, column) of each row, long ``[batch, rows, 3]``; -1 for rows that are not on the grid.
        tower: Layers of the vision tower by their number: :class:`TowerTensors` for all rows, or what
            :func:`tower_signals` makes of a layer that ran.
        annotations: Vectors ``[batch, rows]`` by name.
        final_norm: The norm behind the last decoder layer, ``[..., dim]`` to ``[..., dim]``.
        needs: Signals that the component can read; all by default.
        layer: Tokens are dropped before this layer.
        num_layers: Layers of the decoder.
        num_heads: Query heads of the decoder.
        sample_ids: One integer per sample; 0, 1, 2 ... by default.
        open_ended: Whether the pruner decides how many tokens survive; ``keep`` is then a lower bound.

    Raises:
        ConfigError: A tensor has the wrong shape, ``keep`` does not have one number per image, or ``needs`` contains an
            unknown signal.
    """
    batch, rows = hidden.shape[:2]
    visual = torch.ones(batch, rows, dtype=torch.bool, device=hidden.device) if visual is None else visual
    image = torch.zeros(batch, rows, dtype=torch.long, device=hidden.device) if images is None else images
    row_mask = torch.ones_like(visual) if row_mask is None else row_mask
    given = {"query": query, "key": key, "value": value, "previous": previous}
    states = {name: tensor for name, tensor in given.items() if tensor is not None}
    for name, tensor in {**states, "visual": visual, "images": image, "row_mask": row_mask}.items():
        if tensor.shape[:2] != (batch, rows):
            raise ConfigError(
                f"{name} has shape {tuple(tensor.shape)}, but hidden has batch {batch} and {rows} rows",
                f"pass a tensor of shape [{batch}, {rows}, ...]",
            )
    check_needs(frozenset(needs), "make_context")
    counts = _count(visual, image) if sizes is None else [list(row) for row in sizes]
    quotas = [[keep] * len(row) for row in counts] if isinstance(keep, int) else [list(row) for row in keep]
    if [len(row) for row in quotas] != [len(row) for row in counts]:
        raise ConfigError(
            f"keep is {quotas} for images of {counts} tokens",
            "pass one number, or for each sample a list with one number per image",
        )
    axis = VisualAxis.of(visual, image, max(map(sum, counts)))
    tower = tower or {}
    signals = TensorSignals(
        axis=axis,
        hidden_rows=hidden,
        row_mask=row_mask,
        is_visual=visual,
        image=image,
        max_images=max(map(len, counts)),
        layer_states=states,
        embeddings=embeddings,
        row_grid=grid,
        tower_layers=tower,
        annotations=annotations or {},
        norm=final_norm,
        ids=tuple(range(batch) if sample_ids is None else sample_ids),
    )
    return PruneContext(
        layer=layer,
        num_layers=num_layers,
        num_heads=num_heads,
        visual_mask=axis.mask,
        per_image=PerImage(axis.images, counts, quotas),
        signals=DeclaredSignals(signals, frozenset(needs), frozenset(tower)),
        target=tuple(map(sum, quotas)),
        open_ended=open_ended,
    )


def _count(visual: Tensor, image: Tensor) -> list[list[int]]:
    """Number of visual tokens per sample and image."""
    counts = []
    for is_visual, number in zip(visual, image, strict=True):
        counts.append(number[is_visual].bincount().tolist())
    return counts
