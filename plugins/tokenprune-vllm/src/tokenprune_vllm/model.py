"""What the served models of all families share: they embed pictures, and drop features before the language model."""

from __future__ import annotations

import inspect
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from vllm.multimodal import MULTIMODAL_REGISTRY

from tokenprune.authoring import TowerSignals, UnsupportedFeatureError, tower_signals
from tokenprune_vllm import private
from tokenprune_vllm.note import Note
from tokenprune_vllm.positions import COLUMNS, read, written
from tokenprune_vllm.processor import pruned_processor
from tokenprune_vllm.selection import choose
from tokenprune_vllm.settings import KEY, engine_settings
from tokenprune_vllm.twin import twin_of


def served(model_class: type) -> type:
    """Register a class with the processor of its parent, pruned."""
    parent = private.processor_factories(model_class)
    register = MULTIMODAL_REGISTRY.register_processor(
        pruned_processor(parent.processor), info=parent.info, dummy_inputs=parent.dummy_inputs
    )
    made: type = register(model_class)
    return made


#: (layer, ``output``, ``arguments`` or number of a module) -> what was seen of a layer of the vision tower.
Seen = dict[tuple[int, str | int], Any]


@contextmanager
def watching(module: nn.Module, saw: Callable[[Mapping[str, Any], Any], None]) -> Iterator[None]:
    """Call ``saw(arguments, output)`` after every forward of a module.

    Hooks would not do: classes that vLLM may compile call their ``forward`` past the module's hooks.
    """
    forward = module.forward
    bind = inspect.signature(forward).bind

    def watched(*arguments: Any, **keywords: Any) -> Any:
        output = forward(*arguments, **keywords)
        saw(bind(*arguments, **keywords).arguments, output)
        return output

    module.forward = watched
    try:
        yield
    finally:
        del module.forward


class Served:
    """Put in front of a model of vLLM. A family says what :meth:`call`, :meth:`places` and the tower's methods say."""

    supports_multimodal_pruning: ClassVar[bool] = True
    supports_mrope: ClassVar[bool] = True
    supported_video_pruning_methods: ClassVar[tuple[str, ...]] = ("evs",)

    config: Any

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)  # type: ignore[call-arg]
        engine_settings(getattr(self.config, KEY, None))  # again: this may be another process
        self.is_multimodal_pruning_enabled = False  # the parent's own, for videos
        self.adapter = twin_of(self.config).adapter

    # ---- what a family says ----------------------------------------------------------------------------------------

    @abstractmethod
    def call(self, batch: Mapping[str, Any], index: int, tokens: int) -> dict[str, Any]:
        """The arguments with which transformers would get one picture alone.

        Args:
            batch: The pictures as vLLM hands them to the model.
            index: The picture.
            tokens: Its visual tokens.
        """

    @abstractmethod
    def places(self, call: Mapping[str, Any], tokens: int) -> Tensor:
        """Three numbers per token, which :meth:`position` makes positions of, long ``[3, tokens]``, on the host."""

    @abstractmethod
    def span(self, data: Mapping[str, Any], tokens: int) -> int:
        """By how much positions grow over a picture that is not pruned, or keeps its original positions."""

    @abstractmethod
    def starts(self, positions: Tensor, media: Tensor) -> Tensor:
        """The position at which the picture of each token begins, long ``[sequence]``; used at visual tokens only.

        Args:
            positions: The positions so far, long ``[3, sequence]``.
            media: Visual tokens, bool ``[sequence]``.
        """

    @abstractmethod
    def position(self, start: Tensor, places: Tensor) -> Tensor:
        """Positions ``[3, tokens]`` of tokens, from where their picture begins and their places."""

    def tower_layer(self, layer: int) -> tuple[nn.Module, Sequence[nn.Module]]:
        """A layer of vLLM's vision tower, and the modules in it that make queries, keys and values; or one for all."""
        raise UnsupportedFeatureError(
            f"{type(self).__name__} does not show its vision tower", "use a method that does not read it"
        )

    def tower_rows(self, batch: Mapping[str, Any], index: int) -> slice:
        """The part of the tower's states that belongs to a picture."""
        return slice(index, index + 1)

    def tower_states(self, outputs: Sequence[Tensor]) -> Sequence[Tensor]:
        """Queries, keys and values as the adapter's :class:`TowerSite` reads them, from the outputs of the modules."""
        return outputs if len(outputs) == 3 else outputs[0].chunk(3, dim=-1)

    def tower_rotary(self, seen: Seen, layer: int, rows: slice) -> Any:
        """The cosines and sines of the tower's rotary embedding for a picture, or None."""
        return None

    # ---- pictures --------------------------------------------------------------------------------------------------

    def embed_multimodal(self, **batch: Any) -> Any:
        """Embed pictures: the features that stay, each with its place in columns behind it."""
        notes = batch.pop(KEY, None)
        if notes is None:
            return super().embed_multimodal(**batch)  # type: ignore[misc]
        found = [Note.read(note) for note in notes]
        methods = [note.parsed.resolved() for note in found]
        layers = {
            layer
            for method, note in zip(methods, found, strict=True)
            if method is not None and note.kept < note.tokens
            for layer in method.pruner.at(0).vision_layers
        }
        features, seen = self._observed(batch, layers)
        width, out = self.config.get_text_config().hidden_size, []
        for index, (states, note, method) in enumerate(zip(features, found, methods, strict=True)):
            if len(states) != note.tokens:
                raise RuntimeError(f"{len(states)} features for a picture of {note.tokens} visual tokens")
            call = self.call(batch, index, note.tokens)
            places = self.places(call, note.tokens)
            if method is not None and note.kept < note.tokens:
                keep, new = choose(
                    method,
                    states[:, :width],  # further columns are those of DeepStack
                    note.kept,
                    self.grid(call),
                    partial(self._read, seen, batch, index, call),
                    self.config.get_text_config(),
                    note.seed,
                )
                if new is not None:
                    states = torch.cat([new.to(states.dtype), states[:, width:]], 1)
                places = places[:, keep.cpu()]
                states = states[keep]
            if note.renumbered:
                places = torch.arange(note.kept).expand(3, -1)
            out.append(torch.cat([states, written(places.to(states.device), states)], 1))
        return tuple(out)

    def grid(self, call: Mapping[str, Any]) -> Tensor | None:
        """(frame, row, column) of each visual token of a picture, long ``[tokens, 3]``; None without a grid."""
        layout = self.adapter.locate(call)
        grid = None if layout is None else self.adapter.grid(call, layout)
        return None if grid is None else grid[0]

    def _observed(self, batch: Mapping[str, Any], layers: set[int]) -> tuple[Sequence[Tensor], Seen]:
        """The features of all pictures, and what layers of the tower did meanwhile."""
        seen: Seen = {}
        with ExitStack() as watched:
            for layer in layers:
                block, modules = self.tower_layer(layer)
                watched.enter_context(watching(block, partial(self._saw_block, seen, layer)))
                for number, module in enumerate(modules):
                    watched.enter_context(watching(module, partial(self._saw_states, seen, layer, number)))
            features = super().embed_multimodal(**batch)  # type: ignore[misc]
        return features, seen

    @staticmethod
    def _saw_block(seen: Seen, layer: int, arguments: Mapping[str, Any], output: Any) -> None:
        seen[layer, "arguments"] = arguments
        seen[layer, "output"] = output[0] if isinstance(output, tuple) else output

    @staticmethod
    def _saw_states(seen: Seen, layer: int, number: int, arguments: Mapping[str, Any], output: Any) -> None:
        seen[layer, number] = output[0] if isinstance(output, tuple) else output

    def _read(
        self,
        seen: Seen,
        batch: Mapping[str, Any],
        index: int,
        call: Mapping[str, Any],
        layer: int,
    ) -> TowerSignals:
        """One layer of the tower for one picture, as the family's adapter reads it."""
        rows = self.tower_rows(batch, index)
        outputs = [seen[layer, number] for number in range(len(self.tower_layer(layer)[1]))]
        query, key, value = (part[rows] for part in self.tower_states(outputs))
        site = self.adapter.tower_site(layer)
        rotary = self.tower_rotary(seen, layer, rows)
        made = site.read(query, key, rotary, self.tower_call(call))
        made = replace(
            made,
            output=seen[layer, "output"][rows].reshape(*made.key.shape[:2], -1),
            value=value.reshape(*made.key.shape[:-1], -1),
        )
        same = self.adapter.projector(layer) is not None
        return tower_signals(made, self.multi_modal_projector if same else None)  # type: ignore[attr-defined]

    def tower_call(self, call: Mapping[str, Any]) -> Mapping[str, Any]:
        """The arguments of the tower for one picture, as the adapter reads them."""
        return call

    # ---- positions -------------------------------------------------------------------------------------------------

    def get_mrope_input_positions(self, input_tokens: list[int], mm_features: Any) -> tuple[Tensor, int]:
        """Positions of a prompt, long ``[3, tokens]``: all tokens of a picture have the position at which it begins.

        :meth:`recompute_mrope_positions` gives them their own, once they are known.
        """
        rows, at, position = [], 0, 0
        for feature in sorted(mm_features, key=lambda item: item.mm_position.offset):
            where = feature.mm_position
            start, length = where.offset, where.length
            if where.is_embed is not None:
                start += int(where.is_embed.int().argmax())
                length = int(where.is_embed.sum())
            data = {name: value.data for name, value in feature.data.items()}
            note = Note.read(data[KEY])
            rows += [torch.arange(position, position + start - at), torch.full((length,), position + start - at)]
            position += start - at + (note.kept if note.renumbered else self.span(data, note.tokens))
            at = start + length
        rows.append(torch.arange(position, position + len(input_tokens) - at))
        return torch.cat([row.expand(3, -1) for row in rows], 1), position - at

    def recompute_mrope_positions(
        self,
        input_ids: Any,
        multimodal_embeddings: Sequence[Tensor],
        mrope_positions: Tensor,
        num_computed_tokens: int,
    ) -> tuple[Sequence[Tensor], Tensor, int]:
        """Features without the columns of their places, and the positions that these say."""
        positions, out, done = mrope_positions.clone(), [], 0
        if len(multimodal_embeddings):
            ids = torch.as_tensor(input_ids, device=positions.device)
            media = torch.isin(ids, torch.tensor(self.adapter.visual_ids, device=ids.device))
            index = (media & (torch.arange(len(ids), device=ids.device) >= num_computed_tokens)).nonzero()[:, 0]
            starts = self.starts(positions, media)
            for states in multimodal_embeddings:
                where = index[done : done + len(states)]
                positions[:, where] = self.position(starts[where], read(states[:, -COLUMNS:]).to(positions.device))
                out.append(states[:, :-COLUMNS])
                done += len(states)
        return out, positions, int(positions[0].max()) + 1 - positions.shape[1]


class OnePosition(Served):
    """A language model with one position per token, carried as three: its own, and twice where its picture begins."""

    def places(self, call: Mapping[str, Any], tokens: int) -> Tensor:
        """See :meth:`Served.places`."""
        return torch.arange(tokens).expand(3, -1)

    def span(self, data: Mapping[str, Any], tokens: int) -> int:
        """See :meth:`Served.span`."""
        return tokens

    def starts(self, positions: Tensor, media: Tensor) -> Tensor:
        """See :meth:`Served.starts`."""
        return positions[1]

    def position(self, start: Tensor, places: Tensor) -> Tensor:
        """See :meth:`Served.position`."""
        return torch.stack([start + places[0], start, start])

    def forward(
        self,
        input_ids: Any,
        positions: Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: Any = None,
        **keywords: Any,
    ) -> Any:
        """Run the language model with its one position per token."""
        positions = positions[0] if positions.dim() == 2 else positions
        return super().forward(  # type: ignore[misc]
            input_ids, positions, intermediate_tensors, inputs_embeds, **keywords
        )
