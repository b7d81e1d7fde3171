"""The signals of one stage of a running prefill."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tokenprune.adapters.base import Adapter
from tokenprune.engine.arguments import is_causal
from tokenprune.engine.calls import Observation
from tokenprune.engine.prompt import PromptMap, at_positions
from tokenprune.engine.tower import TowerReader
from tokenprune.errors import ScoreError, UnsupportedModelError
from tokenprune.ops.gather import rows_at
from tokenprune.ops.rotary import turn_back
from tokenprune.ops.rows import is_visible, take
from tokenprune.signals.rows import Rows, VisualAxis
from tokenprune.signals.signals import AttentionProbe, Prompt, TowerSignals


@dataclass(frozen=True, kw_only=True)
class StageSignals:
    """Implements :class:`tokenprune.signals.signals.Signals` for one stage of a running prefill.

    Attributes:
        adapter: The model's adapter.
        layer: Tokens are dropped before this layer.
        prompt_map: The prompt before any stage.
        observation: The states and arguments of layer ``layer - 1``, as far as they were observed.
        entering_states: Hidden states that enter ``layer``, ``[batch, rows, dim]``.
        arguments: The other arguments of ``layer`` by name, for these rows.
        stored_keys: Tells the keys of earlier turns of a layer that has not run in this one; None in a first turn.
        embeddings: Input of layer 0, ``[batch, seq, dim]``, where that is read.
        tower_reader: The layers of the vision tower.
        rows: Position of each row in the unpruned sequence; None while it is whole.
        row_mask: Rows that are no padding, bool ``[batch, rows]``.
        axis: The visual tokens that are left.
        counts: Visual tokens per sample before any stage.
        annotations: Values that the caller gave per visual token, by name.
        ids: One stable integer per sample.
    """

    adapter: Adapter
    layer: int
    prompt_map: PromptMap
    observation: Observation
    entering_states: Tensor
    arguments: Mapping[str, Any]
    stored_keys: Callable[[int], Tensor | None]
    embeddings: Tensor | None
    tower_reader: TowerReader
    rows: Tensor | None
    row_mask: Tensor
    axis: VisualAxis
    counts: Sequence[int]
    annotations: Mapping[str, Sequence[Tensor]]
    ids: tuple[int, ...]

    def hidden(self) -> Tensor:
        """See :meth:`tokenprune.signals.signals.Signals.hidden`."""
        return self.axis.gather(self.entering_states)

    def states(self, name: str) -> Tensor:
        """See :meth:`tokenprune.signals.signals.Signals.states`."""
        return self.axis.gather(self._observed(name))

    def sequence(self) -> Rows:
        """See :meth:`tokenprune.signals.signals.Signals.sequence`."""
        return Rows(self.entering_states, self.row_mask, self.axis)

    def sample_ids(self) -> tuple[int, ...]:
        """See :meth:`tokenprune.signals.signals.Signals.sample_ids`."""
        return self.ids

    def _observed(self, name: str) -> Tensor:
        """States of all rows."""
        if name not in self.observation.states:
            raise UnsupportedModelError(
                f"the {name} states of layer {self.layer - 1} were not observed: its attention did not run as usual",
                "compile parts of the model before apply, and not inside its block: then they run eagerly there",
            )
        return self.observation.states[name]

    def attention(self) -> AttentionProbe:
        """See :meth:`tokenprune.signals.signals.Signals.attention`."""
        arguments = self.observation.arguments
        if arguments is None:
            raise UnsupportedModelError(
                f"the arguments of layer {self.layer - 1} were not observed: the layer did not run as usual",
                "compile layers before apply, and not inside its block: then they run eagerly there",
            )
        layer = self.layer - 1
        queries, earlier = partial(rows_at, self._observed("query")), self.observation.earlier
        return self._probe(layer, arguments, queries, self._observed("key"), earlier)

    def entering(self) -> AttentionProbe:
        """See :meth:`tokenprune.signals.signals.Signals.entering`."""
        projections = self.adapter.stack.projections(self.layer, frozenset({"query", "key"}))
        query, key = projections["query"], projections["key"]
        entered = self.adapter.stack.entering_norm(self.layer)(self.entering_states)
        pick = partial(rows_at, entered)

        def queries(index: Tensor) -> Tensor:
            return query.read(query.module(pick(index)))

        earlier = self.stored_keys(self.layer)
        return self._probe(self.layer, self.arguments, queries, key.read(key.module(entered)), earlier)

    def final_norm(self) -> Callable[[Tensor], Tensor]:
        """See :meth:`tokenprune.signals.signals.Signals.final_norm`."""
        return self.adapter.stack.final_norm()

    def _probe(
        self,
        layer: int,
        arguments: Mapping[str, Any],
        queries: Callable[[Tensor], Tensor],
        key: Tensor,
        earlier: Tensor | None,
    ) -> AttentionProbe:
        """Attention rows of a layer.

        Args:
            layer: The layer.
            arguments: Its arguments by name.
            queries: See :class:`tokenprune.signals.signals.AttentionProbe`.
            key: Keys of all rows.
            earlier: Keys of earlier turns.
        """
        attention = self.adapter.stack.attention(layer)
        rotate = self.adapter.stack.rotary(layer)
        cos, sin = arguments[self.adapter.layer_signature.position_embeddings]

        def rotated(states: Tensor, keys: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
            return rotate(states, take(cos, index, -2, -3), take(sin, index, -2, -3)), rotate(keys, cos, sin)

        def rotated_from_first(keys: Tensor) -> Tensor:
            first = self.row_mask.int().argmax(1, keepdim=True)
            return rotate(keys, *turn_back(cos, sin, take(cos, first, -2, -3), take(sin, first, -2, -3)))

        scaling = getattr(attention, "scaling", None) or key.shape[-1] ** -0.5
        softcap = getattr(attention, "attn_logit_softcapping", None)
        held = 0 if earlier is None else earlier.shape[2]
        visible = self._visible(layer, arguments, held, key.shape[1])
        return AttentionProbe(queries, key, rotated, visible, float(scaling), softcap, rotated_from_first, earlier)

    def _visible(self, layer: int, arguments: Mapping[str, Any], held: int, rows: int) -> Callable[[Tensor], Tensor]:
        """See :class:`tokenprune.signals.signals.AttentionProbe`.

        Args:
            layer: The layer.
            arguments: Its arguments by name.
            held: Keys of earlier turns.
            rows: Rows of this one.
        """
        mask = arguments.get(self.adapter.layer_signature.attention_mask)
        causal = is_causal(self.adapter, layer, arguments)

        def visible(index: Tensor) -> Tensor:
            order = torch.arange(-held, rows, device=index.device)
            before = order <= index[:, :, None] if causal else torch.ones_like(order <= index[:, :, None])
            if mask is None:
                return before
            if mask.dim() == 2:
                shown: Tensor = before & mask.bool()[:, None]
                return shown
            # behind the prompt a static cache has free rows
            seen: Tensor = take(mask[:, :1, :, : held + rows], index, 2, 0)[:, 0]
            return is_visible(seen)

        return visible

    def prompt(self) -> Prompt:
        """See :meth:`tokenprune.signals.signals.Signals.prompt`."""
        if self.embeddings is None:
            raise ScoreError("what entered layer 0 was not observed", "add 'embeddings' to the component's needs")
        device, visual = self.axis.positions.device, self.prompt_map.visual.to(self.axis.positions.device)
        rows = self.rows
        if rows is None:
            rows = torch.arange(visual.shape[1], device=device).expand(len(visual), -1)
        return Prompt(self.embeddings.to(device), visual, self.prompt_map.tokens.to(device) & ~visual, rows)

    def grid(self) -> Tensor:
        """See :meth:`tokenprune.signals.signals.Signals.grid`."""
        return at_positions(self.prompt_map.grid, self.axis.positions, self.axis.mask)

    def frames(self) -> Tensor:
        """See :meth:`tokenprune.signals.signals.Signals.frames`."""
        return at_positions(self.prompt_map.frames, self.axis.positions, self.axis.mask)

    def frame_numbers(self) -> Sequence[Tensor]:
        """See :meth:`tokenprune.signals.signals.Signals.frame_numbers`."""
        return self.prompt_map.frame_numbers

    def tower(self, layer: int) -> TowerSignals:
        """See :meth:`tokenprune.signals.signals.Signals.tower`."""
        return self.tower_reader.view(layer, self.axis)

    def annotation(self, name: str) -> Tensor:
        """See :meth:`tokenprune.signals.signals.Signals.annotation`."""
        if name not in self.annotations:
            known = ", ".join(sorted(self.annotations)) or "none"
            raise ScoreError(
                f"annotation {name!r} was not given (given: {known})",
                f"call run.annotate({name}=[...]) before generate",
            )
        items, visual = self.annotations[name], self.prompt_map.visual.cpu()
        batch = len(visual)
        if not items or batch % len(items):
            raise ScoreError(
                f"annotation {name!r} has {len(items)} vectors for a batch of {batch}", "give one per sample"
            )
        repeats = batch // len(items)  # beams and returned sequences repeat every sample
        values = torch.zeros(visual.shape)
        for sample in range(batch):
            item = items[sample // repeats]
            if item.numel() != self.counts[sample]:
                raise ScoreError(
                    f"annotation {name!r} of sample {sample} has {item.numel()} values",
                    f"give one per visual token: {self.counts[sample]}",
                )
            values[sample, visual[sample]] = item.flatten()
        return values.to(self.axis.positions.device).gather(1, self.axis.positions).masked_fill(~self.axis.mask, 0.0)
