"""The engine: prunes visual tokens inside an unchanged transformers model. The only file that touches hooks.

One forward pass, no layer run twice. At the first pruned layer K the hidden states are compacted; from K on every
layer's position embeddings, position ids and mask are compacted to the same rows, which keep their original rotary
positions. In decode the caches of pruned layers hold fewer keys; see :mod:`tokenprune.cache` for why the masks that
arrive can then be trusted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

from tokenprune.adapters import adapter_for
from tokenprune.adapters.base import Adapter
from tokenprune.adapters.layout import VisualLayout
from tokenprune.adapters.projections import Projection
from tokenprune.adapters.towers import TowerRun, TowerSite
from tokenprune.budgets.base import Schedule
from tokenprune.cache import Rows, cache_bytes, check_cache, mark, pruned_layer
from tokenprune.call_arguments import bound_arguments
from tokenprune.config import Method
from tokenprune.context import ENTERING
from tokenprune.errors import BusyModelError, ConfigError, LayerError, ScoreError, UnsupportedFeatureError
from tokenprune.ops.rows import decode_mask, keep_index, take
from tokenprune.prefill import Prefill
from tokenprune.pruners.base import Selection
from tokenprune.replaced import Replaced, listened_to
from tokenprune.run import Run, StageResult
from tokenprune.selectors.base import LayerChoice, ModelProfile

_MARK = "_tokenprune_run"  # on the decoder while a method is applied: two at once would corrupt each other
_STATES = frozenset({"query", "key", "value"})


@contextmanager
def apply(model: nn.Module, method: Method, calibration: Sequence[Mapping[str, Any]] | None = None) -> Iterator[Run]:
    """Prune a model's visual tokens inside the block; ``forward`` and ``generate`` work as before.

    Args:
        model: Any supported transformers model; it is not changed, and nothing is left on it afterwards.
        method: What to do; see :class:`tokenprune.Method`.
        calibration: A few inputs (as for ``model(**inputs)``), for layer selectors that measure the model.

    Yields:
        The run: ``run.stages`` and ``run.report`` tell what the last prefill did.

    Raises:
        UnsupportedModelError: The engine cannot find what it needs in the model.
        UnsupportedFeatureError: Flex attention, flash attention with sliding windows ...
        LayerError: A layer is out of range, or the method needs signals that do not exist before it.
        BusyModelError: A method is already applied to the model.
    """
    if not isinstance(method, Method):
        raise ConfigError(f"apply needs a Method, got {type(method).__name__}", "use tp.load_method(name) or tp.Method")
    adapter = adapter_for(model)
    decoder = adapter.decoder
    if hasattr(decoder, _MARK):
        raise BusyModelError("a method is already applied to this model", "leave the first apply block before another")
    setattr(decoder, _MARK, True)
    try:
        choice = method.layers.select(_profile(model, adapter, method, calibration))
        run = Run(method, choice, adapter.name, adapter.num_layers, adapter.text_config)
        engine = _Engine(model, adapter, run)
        try:
            engine.attach()
            yield run
        finally:
            engine.detach()
    finally:
        delattr(decoder, _MARK)


def choose_layers(
    model: nn.Module, method: Method, calibration: Sequence[Mapping[str, Any]] | None = None
) -> LayerChoice:
    """The layers at which a method would prune a model, and why these; arguments and errors as for :func:`apply`."""
    return method.layers.select(_profile(model, adapter_for(model), method, calibration))


def _profile(
    model: nn.Module, adapter: Adapter, method: Method, calibration: Sequence[Mapping[str, Any]] | None
) -> ModelProfile:
    if calibration is None:
        return ModelProfile(adapter.name, adapter.num_layers)
    from tokenprune.measure.entropy import measure_entropy

    return ModelProfile(
        adapter.name,
        adapter.num_layers,
        lambda: measure_entropy(model, calibration),
        lambda layer: _last_logits(model, adapter, method, calibration, layer),
    )


@torch.no_grad()
def observe(model: nn.Module, inputs: Mapping[str, Any], callback: Callable[[int, Tensor, Tensor], None]) -> None:
    """Run one unpruned forward and show the visual tokens at the input of every decoder layer.

    Args:
        model: A supported transformers model.
        inputs: Arguments of its forward.
        callback: Called as ``callback(layer, hidden, visual_mask)`` with ``hidden`` ``[batch, n_visual, dim]``
            (right-padded) and ``visual_mask`` bool ``[batch, n_visual]``.
    """
    adapter = adapter_for(model)
    layout = adapter.locate(inputs)
    if layout is None or not bool(layout.mask.any()):
        raise UnsupportedFeatureError("the inputs hold no visual tokens", "give calibration samples with images")
    rows = keep_index(layout.mask, int(layout.mask.sum(1).max())).flip(1)  # padding to the right
    rows = rows.gather(1, rows.masked_fill(rows < 0, adapter.num_layers + layout.mask.shape[1]).argsort(1))

    def show(layer: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            hidden = args[0] if args else kwargs["hidden_states"]
            callback(layer, take(hidden, rows, 1, 0), rows.to(hidden.device) >= 0)

        return hook

    handles = [
        layer.register_forward_pre_hook(show(index), with_kwargs=True) for index, layer in enumerate(adapter.layers)
    ]
    try:
        model(**inputs)
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def _last_logits(
    model: nn.Module, adapter: Adapter, method: Method, calibration: Sequence[Mapping[str, Any]], layer: int | None
) -> Tensor:
    """Logits of every calibration sample's last prompt token, with the method pruning before one layer, or unpruned.

    Engines are made directly: the model carries the mark of the ``apply`` that asks already.
    """
    engine = None
    if layer is not None:
        choice = LayerChoice((layer,), "a candidate")
        engine = _Engine(model, adapter, Run(method, choice, adapter.name, adapter.num_layers, adapter.text_config))
    found = []
    try:
        if engine is not None:
            engine.attach()
        for inputs in calibration:
            logits = model(**{**inputs, "use_cache": False}).logits
            mask = inputs.get("attention_mask")
            # padding on the right is never dropped: counted from the end, the last token is where it was
            after = mask.long().flip(1).argmax(1).to(logits.device) if mask is not None else 0
            rows = torch.arange(len(logits), device=logits.device)
            found.append(logits[rows, logits.shape[1] - 1 - after].float().cpu())
    finally:
        if engine is not None:
            engine.detach()
    if not found:
        raise UnsupportedFeatureError("the calibration holds no samples", "give a few inputs")
    return torch.cat(found)


class _Engine:
    """The hooks of one applied method."""

    def __init__(self, model: nn.Module, adapter: Adapter, run: Run) -> None:
        self.model, self.adapter, self.run = model, adapter, run
        self.stages = run.choice.layers
        self.pruner = run.method.pruner
        self.pruner.check(self.stages)
        self.needs = [self.pruner.at(number).needs for number in range(len(self.stages))]
        self.schedule = Schedule(self.stages, adapter.num_layers)
        self.prefill: Prefill | None = None  # the prefill that is running
        self.masks: dict[tuple[int, int, int], tuple[Any, Tensor]] | None = None  # of the decode step that is running
        self.handles: list[Any] = []
        self.layer_handles: list[Any] = []
        self.temporary: list[Any] = []
        self.tower: list[TowerRun] = []  # runs of the vision tower, and what its layers showed
        self.encoding: dict[str, Any] = {}  # of the encoder that is running: what the tower is not told
        self.seen = 0  # samples that this run has prefilled: the default sample ids
        self.chain: tuple[Tensor, dict[str, Tensor], list[Selection]] | None = None
        self._check()

    # ---- set-up ----------------------------------------------------------------------------------------------

    def _check(self) -> None:
        adapter, first, last = self.adapter, self.stages[0], self.stages[-1]
        if first < 0 or last >= adapter.num_layers:
            raise LayerError(
                f"layer {last if first >= 0 else first} is out of range: the model has {adapter.num_layers} layers",
                f"use 0 to {adapter.num_layers - 1}",
            )
        self.run.method.budget.check(self.stages)
        signals = self.needs[0] - ENTERING
        if first == 0 and signals:
            raise LayerError(
                f"{type(self.pruner.at(0)).__name__} reads {', '.join(sorted(signals))} of the layer before layer 0,"
                " which does not exist",
                "prune at layer 1 or later, or use a scorer that reads hidden states",
            )
        adapter.check_layers(first)
        implementation = adapter.attention_implementation
        if not (implementation in ("sdpa", "eager") or "flash" in implementation):
            raise UnsupportedFeatureError(
                f"attention implementation {implementation!r} is not supported", "use sdpa, eager or flash_attention_2"
            )
        if "flash" in implementation:
            for layer in range(first, adapter.num_layers):
                if adapter.layer_type(layer) != "full_attention":
                    # the kernel counts its window in kept tokens, the model means original positions
                    raise UnsupportedFeatureError(
                        f"{implementation} cannot prune layer {layer} ({adapter.layer_type(layer)}) exactly",
                        "use sdpa or eager",
                    )
        self._watched()
        for layer, needs in zip(self.stages, self.needs, strict=True):
            if needs - ENTERING:
                adapter.projections(layer - 1, _states(needs))
            if "attention" in needs:
                adapter.check_attention_rows(layer - 1)

    def attach(self) -> None:
        """Put every hook in place."""
        add = self.handles.append
        # whoever generates with a helper model would roll the cache back: refused before anything runs
        add(Replaced(self.model, "_assisted_decoding", lambda own: _refuse_assisted))
        add(self.model.register_forward_pre_hook(self._before_model, with_kwargs=True))
        add(self.model.register_forward_hook(self._after_model, with_kwargs=True, always_call=True))
        add(self.adapter.decoder.register_forward_pre_hook(self._before_decoder, with_kwargs=True))
        watched = self._watched()
        for tower in dict.fromkeys(where.tower for _, where in watched):
            add(tower.register_forward_pre_hook(self._start_tower, with_kwargs=True))
        for name, wanted in self.adapter.encoders.items() if watched else ():
            add(listened_to(getattr(self.model, "base_model", self.model), name, self._note_encoder(wanted)))
        for number, where in watched:
            add(where.attention.register_forward_pre_hook(self._keep_rotary(number), with_kwargs=True))
            for name, module in (("query", where.query), ("key", where.key)):
                add(module.register_forward_hook(self._keep_tower(number, name)))

    def _watched(self) -> list[tuple[int, TowerSite]]:
        """Layers of the tower that are read, and where: of both towers, where videos have one of their own."""
        found = {}
        for number in sorted(self.pruner.vision_layers):
            for where in (self.adapter.tower_site(number), self.adapter.video_tower_site(number)):
                found[number, where.attention] = where
        return [(number, where) for (number, _), where in found.items()]

    def _watch_layers(self, wanted: bool) -> None:
        """Hook the layers, or let go of them: a hook that does nothing still costs each layer of each step."""
        if wanted and not self.layer_handles:
            for layer in range(self.stages[0], self.adapter.num_layers):
                hook = self._before_layer(layer)
                module = self.adapter.layers[layer]
                # before all other hooks: those shall see what the layer gets
                self.layer_handles.append(module.register_forward_pre_hook(hook, with_kwargs=True, prepend=True))
        elif not wanted:
            for handle in self.layer_handles:
                handle.remove()
            self.layer_handles.clear()

    def detach(self) -> None:
        """Take every hook away again."""
        self._drop_temporary()
        self._watch_layers(False)
        for handle in self.handles:
            handle.remove()
        self.handles.clear()
        self.prefill = self.masks = self.chain = None
        self.tower = []

    def _drop_temporary(self) -> None:
        for handle in self.temporary:
            handle.remove()
        self.temporary.clear()

    # ---- the model -------------------------------------------------------------------------------------------

    def _before_model(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._drop_temporary()
        self.prefill = self.masks = None
        call = bound_arguments(module.forward, args, kwargs)
        cache = call.get("past_key_values")
        held = next((found for stage in self.stages if (found := pruned_layer(cache, stage)) is not None), None)
        self._watch_layers(held is not None)
        if held is not None:
            self._continue(held.rows, call)
            return
        past = cache.get_seq_length() if cache is not None else 0
        ids = call.get("input_ids")
        if past and ids is not None and ids.shape[1] == 1:
            return  # a decode step after an unpruned prefill: nothing to do, nothing to look at
        check_cache(cache, self.stages[0])
        layout = self.adapter.locate(call)
        if layout is None and past == 0:
            raise UnsupportedFeatureError(
                "the model was called without input_ids", "pass input_ids, not only embeddings"
            )
        counts = _count_groups(layout) if layout is not None else []
        if past:
            if any(map(sum, counts)):
                raise UnsupportedFeatureError(
                    "images in a later turn (or a chunked prefill): the KV cache is not empty",
                    "prefill the whole conversation at once",
                )
            return  # an unpruned conversation goes on unpruned: exact
        if call.get("labels") is not None:
            raise UnsupportedFeatureError("labels: a pruned forward has fewer logits than labels", "leave out labels")
        assert layout is not None
        width = layout.mask.shape[1]
        text = [width - sum(sizes) for sizes in counts]
        if not any(map(sum, counts)):
            reason, none = "not pruned: the prompt holds no visual tokens", [0] * len(text)
            self.run.begin([StageResult(layer, none, none, reason=reason) for layer in self.stages], [], text)
            return
        self.adapter.check_prompt(self.stages[0], width)
        if not call.get("mm_encoder_outputs"):
            self.tower = []  # the tower is about to run; ``generate`` runs it before the model (Transformers 5.23)
        prefill = Prefill(
            self.adapter,
            self.run.method,
            self.schedule,
            layout,
            call,
            counts,
            self.run.annotations,
            sample_ids=self._sample_ids(call, layout),
            replay=self._replayed(call),
            tower=self.tower,
        )
        self.run.begin(prefill.results, prefill.clock, text)
        self.prefill = prefill
        self._watch_layers(True)
        if prefill.replay is None:
            self._capture()

    def _continue(self, rows: Rows, call: Mapping[str, Any]) -> None:
        """A decode step, or a further turn of text, on a cache that this run pruned."""
        if rows.owner != self.run.key:
            raise UnsupportedFeatureError(
                "the KV cache was pruned by another apply block", "keep a conversation inside one block"
            )
        ids = call.get("input_ids")
        if ids is not None and ids.shape[1] > 1:
            visual = self.adapter.visual_mask({"input_ids": ids})
            if visual is not None and bool(visual.any()):
                raise UnsupportedFeatureError(
                    "images in a later turn: the KV cache is not empty", "prefill the whole conversation at once"
                )
        self.masks = {}

    def _after_model(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        prefill, self.prefill, self.masks = self.prefill, None, None
        self._drop_temporary()
        if prefill is not None:
            self.tower = []
        if prefill is not None and output is not None:
            self._finish(prefill, output)
            prefill.verify()

    def _finish(self, prefill: Prefill, output: Any) -> None:
        """After a prefill: tell the cache which rows it holds."""
        arguments = prefill.arguments
        cache = getattr(output, "past_key_values", None)
        if cache is None and isinstance(output, tuple):  # return_dict=False
            cache = next((item for item in output if isinstance(item, Cache)), None)
        if cache is None:
            cache = arguments.get("past_key_values")
        if cache is None:
            self._remember(prefill)
            return
        held = whole = cache_bytes(cache)
        for stage, (rows, ragged) in prefill.stage_rows.items():
            end = min((other for other in prefill.stage_rows if other > stage), default=self.adapter.num_layers)
            for layer in range(stage, end):
                states = cache.layers[layer].keys
                window = getattr(cache.layers[layer], "sliding_window", None)
                full = prefill.width if window is None else min(prefill.width, window - 1)
                width = states.shape[-2]
                whole += (full - width) * 2 * states.element_size() * states.numel() // max(width, 1)
                mark(cache, layer, Rows(rows, prefill.width, ragged, self.run.key))
        self.run.kv_bytes = (held, whole)

    def _before_decoder(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Take over features that the decoder would add after layers that will see fewer tokens (DeepStack)."""
        self._check_deepstack(kwargs)
        features = kwargs.get("deepstack_visual_embeds")
        if self.prefill is None or features is None or len(features) <= self.stages[0]:
            return None
        places = kwargs["visual_pos_masks"]
        for layer in range(self.stages[0], len(features)):
            embeds = features[layer]
            dense = embeds.new_zeros(*places.shape, embeds.shape[-1])
            dense[places.to(embeds.device)] = embeds
            self.prefill.late[layer] = dense
            hook = self._after_layer(layer)
            self.temporary.append(self.adapter.layers[layer].register_forward_hook(hook))
        return args, {**kwargs, "deepstack_visual_embeds": list(features[: self.stages[0]])}

    def _check_deepstack(self, kwargs: Mapping[str, Any]) -> None:
        """Refuse features that a decoder adds before layers that would see fewer tokens (Granite 4 Vision)."""
        features = kwargs.get("deepstack_features")
        if self.prefill is None or not features:
            return
        last = max(features) if isinstance(features, Mapping) else self.adapter.num_layers
        if last > self.stages[0]:
            raise UnsupportedFeatureError(
                f"the decoder adds visual features before layer {last}, after layer {self.stages[0]} was pruned",
                f"prune at layer {last} or later" if last < self.adapter.num_layers else "it cannot be pruned exactly",
            )

    def _after_layer(self, layer: int) -> Callable[..., Any]:
        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            prefill = self.prefill
            if prefill is None or layer not in prefill.late:
                return None
            hidden = output[0] if isinstance(output, tuple) else output
            dense = prefill.late.pop(layer).to(hidden.device, hidden.dtype)
            if prefill.rows is not None:
                dense = take(dense, prefill.rows, 1, 0)
            hidden = hidden + dense
            return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

        return hook

    # ---- one layer -------------------------------------------------------------------------------------------

    def _before_layer(self, layer: int) -> Callable[..., Any]:
        stage = max(index for index in self.stages if index <= layer)
        prunes = layer == stage
        forward = self.adapter.layers[layer].forward

        def hook(
            module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
            if self.masks is not None:
                return self._decode(layer, args, kwargs)
            prefill = self.prefill
            if prefill is None:
                return None
            given = kwargs if len(args) == 1 else bound_arguments(forward, args, kwargs)
            hidden = args[0] if args else kwargs["hidden_states"]
            if prunes:
                hidden = prefill.prune(layer, hidden)
            if prefill.rows is None:
                return None
            return (hidden,), prefill.compact(layer, given)

        return hook

    def _decode(
        self, layer: int, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        held = pruned_layer(_cache_of(kwargs), layer)
        mask = kwargs.get("attention_mask")
        if held is None or (mask is None and not held.rows.ragged):
            return None
        hidden = args[0] if args else kwargs["hidden_states"]
        new = hidden.shape[1]
        assert self.masks is not None
        # one mask serves all layers of a stage that hold equally many keys
        key = (held.keys.shape[-2], id(mask), id(held.rows.positions))
        if key not in self.masks:
            total = held.get_seq_length() + new
            if mask is not None and mask.shape[-1] == total and held.keys.shape[-2] + new == total - held.rows.dropped:
                taken = held.rows.cut(mask)
            else:  # no mask, or a sliding window's
                taken = decode_mask(mask, held.columns(new), total, new)
            if mask is None and "flash" in self.adapter.attention_implementation:
                taken = taken[:, 0, -1]
            self.masks[key] = (mask, taken)
        return args, {**kwargs, "attention_mask": self.masks[key][1]}

    # ---- signals ---------------------------------------------------------------------------------------------

    def _capture(self) -> None:
        """Observe the layers before each stage during this prefill, and only what the method needs."""
        assert self.prefill is not None
        entering = False
        for stage, needs in zip(self.stages, self.needs, strict=True):
            if not self.prefill.reduces(stage):
                continue
            if "embeddings" in needs and not entering:
                entering = True
                add = self.adapter.layers[0].register_forward_pre_hook
                # before the hook that may prune there already
                self.temporary.append(add(self._keep_embeddings, with_kwargs=True, prepend=True))
            if stage == 0:
                continue
            for name, projection in self.adapter.projections(stage - 1, _states(needs)).items():
                hook = self._store(f"{name} {stage}", projection)
                self.temporary.append(projection.module.register_forward_hook(hook))
            if "attention" in needs:
                layer = self.adapter.layers[stage - 1]
                self.temporary.append(layer.register_forward_pre_hook(self._note(stage), with_kwargs=True))

    def _store(self, key: str, projection: Projection) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Tensor) -> None:
            if self.prefill is not None:
                self.prefill.captured[key] = projection.read(output)

        return hook

    def _start_tower(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = bound_arguments(module.forward, args, kwargs)
        small = {k: v for k, v in given.items() if not (isinstance(v, Tensor) and v.is_floating_point())}
        self.tower.append(TowerRun({**self.encoding, **small}))

    def _note_encoder(self, wanted: Sequence[str]) -> Callable[[Mapping[str, Any]], None]:
        def note(given: Mapping[str, Any]) -> None:
            known = {name: given[name] for name in wanted if given.get(name) is not None}
            self.encoding = {name: _without_pixels(value) for name, value in known.items()}

        return note

    def _keep_rotary(self, number: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
            if self.tower:
                self.tower[-1].states[number, "rotary"] = kwargs.get("position_embeddings")

        return hook

    def _keep_tower(self, number: int, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Tensor) -> None:
            if self.tower:
                self.tower[-1].states[number, name] = output

        return hook

    def _keep_embeddings(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        if self.prefill is not None:
            self.prefill.embeddings = args[0] if args else kwargs["hidden_states"]

    def _note(self, stage: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
            if self.prefill is not None:
                self.prefill.probed[stage] = kwargs

        return hook

    # ---- identity of samples ---------------------------------------------------------------------------------

    def _sample_ids(self, call: Mapping[str, Any], layout: VisualLayout) -> tuple[int, ...]:
        """Stable numbers of the samples: given ones, else counted; copies of a row (beams) share one."""
        batch = layout.mask.shape[0]
        given = self.run.sample_ids
        if given is not None:
            if batch % len(given):
                raise ScoreError(f"{len(given)} sample_ids for a batch of {batch}", "give one per sample")
            return tuple(i for i in given for _ in range(batch // len(given)))
        ids = call.get("input_ids")
        fresh = [True] * batch
        if ids is not None and batch > 1:
            fresh[1:] = (ids[1:] != ids[:-1]).any(1).tolist()
        numbers = []
        for first in fresh:
            self.seen += first
            numbers.append(self.seen - 1)
        return tuple(numbers)

    def _replayed(self, call: Mapping[str, Any]) -> list[Selection] | None:
        """Selections of the previous step, when ``generate`` runs without a cache and this is its next step."""
        chain, self.chain = self.chain, None
        ids = call.get("input_ids")
        if chain is None or call.get("use_cache") is not False or ids is None:
            return None
        earlier, visuals, selections = chain
        longer = ids.shape[0] == earlier.shape[0] and ids.shape[1] == earlier.shape[1] + 1
        if longer and _same_memory(visuals, _visual_inputs(call)) and self._same_prompt(ids, earlier):
            return selections
        return None

    def _same_prompt(self, ids: Tensor, earlier: Tensor) -> bool:
        """Each row is an earlier row and one token: beams may swap the text that follows the last visual token."""
        mask = self.adapter.visual_mask({"input_ids": earlier})
        if mask is None:
            return False
        end = int(mask.int().cumsum(1).argmax(1).max()) + 1
        rows = {tuple(row) for row in earlier.tolist()}
        return torch.equal(ids[:, :end], earlier[:, :end]) and all(tuple(row[:-1]) in rows for row in ids.tolist())

    def _remember(self, prefill: Prefill) -> None:
        """Keep the selections for the next step of a generation without a cache."""
        ids = prefill.arguments.get("input_ids")
        if ids is not None and len(prefill.selections) == len(self.stages):
            # the tensors themselves are kept: freed memory may hold another image by the next call
            self.chain = (ids, _visual_inputs(prefill.arguments), prefill.selections)


def _states(needs: frozenset[str]) -> frozenset[str]:
    """The states of a layer that have to be read for what a pruner needs."""
    wanted = needs & _STATES
    return wanted | {"query", "key"} if "attention" in needs else wanted


def _cache_of(kwargs: Mapping[str, Any]) -> Any:
    """The KV cache among a layer's arguments; not every family calls it ``past_key_values``."""
    cache = kwargs.get("past_key_values")
    return cache if cache is not None else next((v for v in kwargs.values() if isinstance(v, Cache)), None)


def _refuse_assisted(*args: Any, **kwargs: Any) -> None:
    raise UnsupportedFeatureError("assisted decoding is not supported", "use greedy, sampling or beam search")


def _count_groups(layout: VisualLayout) -> list[list[int]]:
    """Visual tokens per sample and group, on the host: the one transfer that a prefill needs."""
    size = int(layout.groups.max()) + 1 if layout.groups.numel() else 0
    if size <= 0:
        return [[] for _ in range(layout.mask.shape[0])]
    member = layout.groups[:, :, None] == torch.arange(size, device=layout.groups.device)
    counts: list[list[int]] = member.sum(1).tolist()
    return [[n for n in sizes if n] for sizes in counts]


def _visual_inputs(call: Mapping[str, Any]) -> dict[str, Tensor]:
    """A call's images and videos by name."""
    return {name: v for name, v in call.items() if isinstance(v, Tensor) and name.startswith("pixel")}


def _same_memory(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """The same tensors, not equal ones."""
    return one.keys() == other.keys() and all(
        one[name].data_ptr() == other[name].data_ptr() and one[name].shape == other[name].shape for name in one
    )


def _without_pixels(value: Any) -> Any:
    """A tensor of pixels by its shape alone: the tower's runs are kept until the block ends."""
    return value.to("meta") if isinstance(value, Tensor) and value.is_floating_point() else value
