"""What the served models of all families share: they embed items, and drop features before the language model.

An item is a picture or a video.
"""

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

from tokenprune import Method
from tokenprune.authoring import Modality, TowerSignals, UnsupportedFeatureError, tower_signals
from tokenprune_vllm import private
from tokenprune_vllm.note import Note
from tokenprune_vllm.positions import COLUMNS, read, written
from tokenprune_vllm.processor import pruned_processor
from tokenprune_vllm.selection import choose
from tokenprune_vllm.settings import KEY, engine_settings
from tokenprune_vllm.twin import twin_of


def served(model_class: type[Served]) -> type:
    """Register a class with the processor of its parent, pruned."""
    parent = private.processor_factories(model_class)
    register = MULTIMODAL_REGISTRY.register_processor(
        pruned_processor(parent.processor, model_class.text_of_video),
        info=parent.info,
        dummy_inputs=parent.dummy_inputs,
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
        self.twin = twin_of(self.config)
        self.adapter = self.twin.adapter

    # ---- what a family says ----------------------------------------------------------------------------------------

    @abstractmethod
    def call(self, batch: Mapping[str, Any], index: int, kind: Modality) -> dict[str, Any]:
        """The arguments with which transformers would get one item alone, without its ids.

        Args:
            batch: Pictures or videos as vLLM hands them to the model.
            index: The item.
            kind: Which of the two.
        """

    @abstractmethod
    def places(self, call: Mapping[str, Any], tokens: int) -> Tensor:
        """Three numbers per token, which :meth:`position` makes positions of, long ``[3, tokens]``, on the host.

        Args:
            call: See :meth:`call`.
            tokens: Tokens of one run: the item, or a frame of it.
        """

    @abstractmethod
    def span(self, data: Mapping[str, Any], tokens: int) -> int:
        """By how much positions grow over a run of visual tokens that keeps its original positions.

        Args:
            data: The item's fields.
            tokens: Tokens of the run.
        """

    @abstractmethod
    def starts(self, positions: Tensor, media: Tensor) -> Tensor:
        """The position at which the item of each token begins, long ``[sequence]``; used at placeholders only.

        Args:
            positions: The positions so far, long ``[3, sequence]``.
            media: Placeholders, bool ``[sequence]``.
        """

    @abstractmethod
    def position(self, start: Tensor, places: Tensor) -> Tensor:
        """Positions ``[3, tokens]`` of tokens, from where their item begins and their places."""

    @staticmethod
    def text_of_video(info: Any) -> int:
        """The most tokens of text between the frames of a video: room is made for their embeddings, too.

        Args:
            info: What vLLM knows of the processor.
        """
        return 0

    def tower_layer(self, layer: int) -> tuple[nn.Module, Sequence[nn.Module]]:
        """A layer of vLLM's vision tower, and the modules in it that make queries, keys and values; or one for all."""
        raise UnsupportedFeatureError(
            f"{type(self).__name__} does not show its vision tower", "use a method that does not read it"
        )

    def tower_rows(self, batch: Mapping[str, Any], index: int) -> slice:
        """The part of the tower's states that belongs to an item."""
        return slice(index, index + 1)

    def tower_states(self, outputs: Sequence[Tensor]) -> Sequence[Tensor]:
        """Queries, keys and values as the adapter's :class:`TowerSite` reads them, from the outputs of the modules."""
        return outputs if len(outputs) == 3 else outputs[0].chunk(3, dim=-1)

    def tower_rotary(self, seen: Seen, layer: int, rows: slice) -> Any:
        """The cosines and sines of the tower's rotary embedding for an item, or None."""
        return None

    # ---- items -----------------------------------------------------------------------------------------------------

    def embed_multimodal(self, **batch: Any) -> Any:
        """Embed pictures or videos: the features that stay, each with its place in columns behind it.

        Text that stands between the frames of a video is embedded with them.
        """
        notes = batch.pop(KEY, None)
        if notes is None:
            return super().embed_multimodal(**batch)  # type: ignore[misc]
        found = [Note.read(note) for note in notes]
        methods = [note.parsed.resolved() if note.kept < note.tokens else None for note in found]
        layers = {layer for method in methods if method is not None for layer in method.pruner.at(0).vision_layers}
        features, seen = self._observed(batch, layers)
        if len(features) != len(found):
            raise RuntimeError(f"features of {len(features)} items for {len(found)}")
        return tuple(
            self._embedded(states, note, method, batch, index, seen)
            for index, (states, note, method) in enumerate(zip(features, found, methods, strict=True))
        )

    def _embedded(
        self, states: Tensor, note: Note, method: Method | None, batch: Mapping[str, Any], index: int, seen: Seen
    ) -> Tensor:
        """One item as it enters the language model, with columns of places, ``[rows of the note, width]``."""
        if len(states) != note.tokens:
            raise RuntimeError(f"{len(states)} features for a {note.kind} of {note.tokens} visual tokens")
        ids = note.ids(self.twin.token(note.kind))
        call = {**self.call(batch, index, note.kind), "input_ids": ids[None]}
        places, visual = self._places(call, note)
        stays = None
        if method is not None:
            stays, states = self._pruned(
                states, note, method, call, partial(self._read, seen, batch, index, call, note)
            )
        if note.text:
            states = self._with_text(states, note, visual)
            stays = None if stays is None else _among_text(stays, visual)
        if stays is not None:
            states, places = states[stays], places[:, stays.cpu()]
        if note.renumbered:
            places = torch.arange(note.rows).expand(3, -1)
        return torch.cat([states, written(places.to(states.device), states)], 1)

    def _with_text(self, states: Tensor, note: Note, visual: Tensor) -> Tensor:
        """The features of an item among the embeddings of its text, which has zeros in further columns."""
        ids = torch.tensor(note.text, device=states.device)
        embeds = self.get_language_model().embed_input_ids(ids)  # type: ignore[attr-defined]
        rows = states.new_zeros(len(visual), states.shape[1])
        rows[~visual, : embeds.shape[1]] = embeds.to(states.dtype)
        rows[visual] = states
        return rows

    def _pruned(
        self, states: Tensor, note: Note, method: Method, call: Mapping[str, Any], read: Callable[[int], Any]
    ) -> tuple[Tensor, Tensor]:
        """The visual tokens that stay, bool ``[tokens]``, and the states of all, which a method may have merged."""
        width = self.config.get_text_config().hidden_size  # further columns are those of DeepStack
        sizes, grid = self.twin.images(call)
        quotas, text = self.twin.quotas(note.kept, sizes), self.config.get_text_config()
        keep, new = choose(method, states[:, :width], sizes, quotas, grid, read, text, note.seed)
        return keep, states if new is None else torch.cat([new.to(states.dtype), states[:, width:]], 1)

    def _places(self, call: Mapping[str, Any], note: Note) -> tuple[Tensor, Tensor]:
        """Places of all tokens of an item, long ``[3, tokens and text]``, and which are visual; on the host."""
        parts, visual, at = list[Tensor](), list[bool](), 0
        for text, tokens in (*note.runs, (note.end, 0)):
            parts.append(torch.arange(at, at + len(text)).expand(3, -1))
            at += len(text)
            if tokens:
                parts.append(self.places(call, tokens) + at)
                at += self.span(call, tokens)
            visual += [False] * len(text) + [True] * tokens
        return torch.cat(parts, 1), torch.tensor(visual)

    def _observed(self, batch: Mapping[str, Any], layers: set[int]) -> tuple[Sequence[Tensor], Seen]:
        """The features of all items, and what layers of the tower did meanwhile."""
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
        note: Note,
        layer: int,
    ) -> TowerSignals:
        """One layer of the tower for one item, as the family's adapter reads it."""
        rows = self.tower_rows(batch, index)
        outputs = [seen[layer, number] for number in range(len(self.tower_layer(layer)[1]))]
        query, key, value = (part[rows] for part in self.tower_states(outputs))
        video = note.kind == "video"
        site = self.adapter.video_tower_site(layer) if video else self.adapter.tower_site(layer)
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
        """The arguments of the tower for one item, as the adapter reads them."""
        return call

    # ---- positions -------------------------------------------------------------------------------------------------

    def get_mrope_input_positions(self, input_tokens: list[int], mm_features: Any) -> tuple[Tensor, int]:
        """Positions of a prompt, long ``[3, tokens]``: all tokens of an item have the position at which it begins.

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
            runs = len(note.text) + sum(self.span(data, tokens) for _, tokens in note.runs)
            position += start - at + (note.rows if note.renumbered else runs)
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
        positions, out, done = mrope_positions, [], 0
        if len(multimodal_embeddings):  # vLLM asks at every step of an answer, too
            positions = positions.clone()
            ids = torch.as_tensor(input_ids, device=positions.device)
            media = torch.isin(ids, torch.tensor(self.adapter.visual_ids, device=ids.device))
            index = (media & (torch.arange(len(ids), device=ids.device) >= num_computed_tokens)).nonzero()[:, 0]
            starts = self.starts(positions, media)
            for states in multimodal_embeddings:
                where = index[done : done + len(states)]
                positions[:, where] = self.position(starts[where], read(states[:, -COLUMNS:]).to(positions.device))
                out.append(states[:, :-COLUMNS])
                done += len(states)
        # behind the last token, as transformers goes on: not behind the time axis of a video, which may reach further
        return out, positions, int(positions[0, -1]) + 1 - positions.shape[1]


def _among_text(keep: Tensor, visual: Tensor) -> Tensor:
    """The rows of an item that stay, bool ``[tokens and text]``: all text, and the visual tokens ``keep``."""
    stays = torch.ones(len(visual), dtype=torch.bool, device=keep.device)
    stays[visual] = keep
    return stays


class OnePosition(Served):
    """A language model with one position per token, carried as three: its own, and twice where its item begins."""

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
