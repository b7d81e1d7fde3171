"""The engine: prunes visual tokens inside an unchanged transformers model. The only file that touches hooks.

One forward pass, no layer run twice. At the first pruned layer K the hidden states are compacted; from K on every
layer's position embeddings, position ids and mask are compacted to the same rows, which keep their original rotary
positions. In decode the caches of pruned layers hold fewer keys; see :mod:`tokenprune.cache` for why the masks that
arrive can then be trusted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

from tokenprune.adapters import adapter_for
from tokenprune.adapters.base import Adapter, Projection, VisualLayout, bound_arguments
from tokenprune.budgets.base import Schedule
from tokenprune.cache import Rows, cache_bytes, check_cache, mark, pruned_layer
from tokenprune.config import Method
from tokenprune.context import AttentionProbe, PruneContext
from tokenprune.errors import (
    BudgetError,
    BusyModelError,
    ConfigError,
    LayerError,
    ScoreError,
    UnsupportedFeatureError,
    UnsupportedModelError,
)
from tokenprune.ops.rows import causal_mask, compose, decode_mask, keep_index, prefill_mask, take, take_nested
from tokenprune.ops.topk import apportion
from tokenprune.pruners.base import Selection
from tokenprune.run import Run, StageResult
from tokenprune.selectors.base import ModelProfile

_MARK = "_tokenprune_run"  # on the decoder while a method is applied: two at once would corrupt each other
_STATES = frozenset({"query", "key", "value"})


@contextmanager
def apply(
    model: nn.Module, method: Method, calibration: Sequence[Mapping[str, Any]] | None = None
) -> Iterator[Run]:
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
        measure = None
        if calibration is not None:
            from tokenprune.measure.entropy import measure_entropy

            measure = lambda: measure_entropy(model, calibration)  # noqa: E731
        choice = method.layers.select(ModelProfile(adapter.name, adapter.num_layers, measure))
        run = Run(method, choice, adapter.name, adapter.num_layers, adapter.text_config)
        engine = _Engine(model, adapter, run)
        try:
            engine.attach()
            yield run
        finally:
            engine.detach()
    finally:
        delattr(decoder, _MARK)


@torch.no_grad()
def observe(
    model: nn.Module, inputs: Mapping[str, Any], callback: Callable[[int, Tensor, Tensor], None]
) -> None:
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


@dataclass
class _Call:
    """What is known of the forward that is running."""

    prefill: bool
    layout: VisualLayout | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    sample_ids: tuple[int, ...] = ()
    counts: list[list[int]] = field(default_factory=list)  # visual tokens per sample and group, now
    rows: Tensor | None = None  # rows of the sequence as it is now; None while it is whole
    ragged: bool = False
    stage_rows: dict[int, tuple[Tensor, bool]] = field(default_factory=dict)  # layer of a stage -> rows from there on
    captured: dict[str, Tensor] = field(default_factory=dict)
    probed: dict[str, Any] = field(default_factory=dict)
    replay: list[Selection] | None = None  # selections of the step before, in generation without a cache
    selections: list[Selection | None] = field(default_factory=list)
    cache: Any = None
    late: dict[int, Tensor] = field(default_factory=dict)  # features that the model adds after a layer (DeepStack)
    memo: dict[tuple[str, int, int], tuple[Any, Any]] = field(default_factory=dict)


class _Clock:
    """A moment, on the host or on the device's stream, without waiting for it."""

    def __init__(self, device: torch.device) -> None:
        self.event: Any = None
        self.host = time.perf_counter()
        if device.type == "cuda":
            self.event = torch.cuda.Event(enable_timing=True)
            self.event.record()

    def since(self, start: _Clock) -> float:
        """Milliseconds since ``start``; waits for the device when asked, not when recorded."""
        if self.event is None:
            return (self.host - start.host) * 1e3
        self.event.synchronize()
        return float(start.event.elapsed_time(self.event))


class _Engine:
    """The hooks of one applied method."""

    def __init__(self, model: nn.Module, adapter: Adapter, run: Run) -> None:
        self.model, self.adapter, self.run = model, adapter, run
        self.stages = run.choice.layers
        self.pruner = run.method.pruner
        self.needs = self.pruner.needs
        self.schedule = Schedule(self.stages, adapter.num_layers)
        self.call: _Call | None = None
        self.handles: list[Any] = []
        self.temporary: list[Any] = []
        self.seen = 0  # samples that this run has prefilled: the default sample ids
        self.chain: tuple[Tensor, Any, list[Selection]] | None = None
        self.names: list[list[str]] = []
        self._check()

    # ---- set-up ----------------------------------------------------------------------------------------------

    def _check(self) -> None:
        adapter, first, last = self.adapter, self.stages[0], self.stages[-1]
        if first < 0 or last >= adapter.num_layers:
            raise LayerError(
                f"layer {last if first >= 0 else first} is out of range: the model has {adapter.num_layers} layers",
                f"use 0 to {adapter.num_layers - 1}",
            )
        signals = self.needs - {"hidden"}
        if first == 0 and signals:
            raise LayerError(
                f"{type(self.pruner).__name__} reads {', '.join(sorted(signals))} of the layer before layer 0,"
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
        for layer in self.stages:
            if signals:
                adapter.projections(layer - 1, self._states())
            if "attention" in self.needs:
                adapter.check_attention_rows(layer - 1)

    def _states(self) -> frozenset[str]:
        wanted = self.needs & _STATES
        return wanted | {"query", "key"} if "attention" in self.needs else wanted

    def attach(self) -> None:
        """Put every hook in place."""
        add = self.handles.append
        # whoever generates with a helper model would roll the cache back: refused before anything runs
        if hasattr(self.model, "_assisted_decoding"):
            self.model.__dict__["_assisted_decoding"] = _refuse_assisted
        add(self.model.register_forward_pre_hook(self._before_model, with_kwargs=True))
        add(self.model.register_forward_hook(self._after_model, with_kwargs=True, always_call=True))
        add(self.adapter.decoder.register_forward_pre_hook(self._before_decoder, with_kwargs=True))
        for layer in range(self.stages[0], self.adapter.num_layers):
            module = self.adapter.layers[layer]
            add(module.register_forward_pre_hook(self._before_layer(layer), with_kwargs=True))

    def detach(self) -> None:
        """Take every hook away again."""
        self._drop_temporary()
        for handle in self.handles:
            handle.remove()
        self.handles.clear()
        self.model.__dict__.pop("_assisted_decoding", None)
        self.call = self.chain = None

    def _drop_temporary(self) -> None:
        for handle in self.temporary:
            handle.remove()
        self.temporary.clear()

    # ---- the model -------------------------------------------------------------------------------------------

    def _before_model(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._drop_temporary()
        self.call = None
        call = bound_arguments(module.forward, args, kwargs)
        cache = call.get("past_key_values")
        check_cache(cache, self.stages[0])
        held = next((pruned_layer(cache, stage) for stage in self.stages if pruned_layer(cache, stage)), None)
        if held is not None:
            self._continue(held.rows, call)
            return
        past = cache.get_seq_length() if cache is not None else 0
        layout = self.adapter.locate(call)
        if layout is None and past == 0:
            raise UnsupportedFeatureError("the model was called without input_ids", "pass input_ids, not only embeddings")
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
        self.run.stages = []
        self.run._clock = []
        width = layout.mask.shape[1]
        self.run._text_tokens = [width - sum(sizes) for sizes in counts]
        if not any(map(sum, counts)):
            self._not_pruned([sum(sizes) for sizes in counts], "not pruned: the prompt holds no visual tokens")
            return
        self.call = _Call(prefill=True, layout=layout, arguments=call, counts=counts, cache=cache)
        self.call.replay = self._replayed(call)
        self.call.sample_ids = self._sample_ids(call, layout)
        if self.call.replay is None:
            self._capture()

    def _continue(self, rows: Rows, call: Mapping[str, Any]) -> None:
        """A decode step, or a further turn of text, on a cache that this run pruned."""
        if rows.owner != self.run.key:
            raise UnsupportedFeatureError(
                "the KV cache was pruned by another apply block", "keep a conversation inside one block"
            )
        ids = call.get("input_ids")
        if ids is not None and ids.shape[1] > 1:
            new = ids[:, -max(1, ids.shape[1]) :]
            layout = self.adapter.visual_mask({"input_ids": new})
            if layout is not None and bool(layout.any()):
                raise UnsupportedFeatureError(
                    "images in a later turn: the KV cache is not empty", "prefill the whole conversation at once"
                )
        self.call = _Call(prefill=False)

    def _after_model(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        call, self.call = self.call, None
        self._drop_temporary()
        if call is None or not call.prefill or output is None:
            return
        cache = getattr(output, "past_key_values", None) or call.cache
        if call.arguments.get("use_cache") is False and call.arguments.get("past_key_values") is None:
            selections = [selection for selection in call.selections if selection is not None]
            if len(selections) == len(self.stages) and call.arguments.get("input_ids") is not None:
                self.chain = (call.arguments["input_ids"], _visual_key(call.arguments), selections)
        if cache is None:
            self.run._kv_bytes = (0, 0)
            return
        assert call.layout is not None
        length = call.layout.mask.shape[1]
        held = cache_bytes(cache)
        whole = held
        for stage, (rows, ragged) in call.stage_rows.items():
            end = min((other for other in call.stage_rows if other > stage), default=self.adapter.num_layers)
            for layer in range(stage, end):
                states = cache.layers[layer].keys
                width = states.shape[-2]
                window = getattr(cache.layers[layer], "sliding_window", None)
                full = length if window is None else min(length, window - 1)
                whole += (full - width) * 2 * states.element_size() * states.numel() // max(width, 1)
                mark(cache, layer, Rows(rows, length, ragged, self.run.key))
        self.run._kv_bytes = (held, whole)

    def _before_decoder(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Take over features that the decoder would add after layers that will see fewer tokens (DeepStack)."""
        call = self.call
        features = kwargs.get("deepstack_visual_embeds")
        if call is None or not call.prefill or features is None or len(features) <= self.stages[0]:
            return None
        places = kwargs["visual_pos_masks"]
        assert call.layout is not None
        for layer in range(self.stages[0], len(features)):
            embeds = features[layer]
            dense = embeds.new_zeros(*places.shape, embeds.shape[-1])
            dense[places.to(embeds.device)] = embeds
            call.late[layer] = dense
            hook = self._after_layer(layer)
            self.temporary.append(self.adapter.layers[layer].register_forward_hook(hook))
        return args, {**kwargs, "deepstack_visual_embeds": list(features[: self.stages[0]])}

    def _after_layer(self, layer: int) -> Callable[..., Any]:
        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            call = self.call
            if call is None or layer not in call.late:
                return None
            hidden = output[0] if isinstance(output, tuple) else output
            dense = call.late.pop(layer).to(hidden.device, hidden.dtype)
            if call.rows is not None:
                dense = take(dense, call.rows, 1, 0)
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
            call = self.call
            if call is None:
                return None
            if not call.prefill:
                return self._decode(layer, args, kwargs)
            given = kwargs if len(args) == 1 else bound_arguments(forward, args, kwargs)
            hidden = args[0] if args else kwargs["hidden_states"]
            if prunes:
                hidden = self._prune(call, layer, hidden)
            if call.rows is None:
                return None
            changed = self._compact(call, layer, given, hidden)
            changed.pop("hidden_states", None)
            return (hidden,), changed

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
        assert self.call is not None
        past = held.keys.shape[-2]
        # one mask serves all layers of a stage that hold equally many keys
        key = (f"decode {past}", id(mask), id(held.rows.positions))
        if key not in self.call.memo:
            total = held.get_seq_length() + new
            taken = decode_mask(mask, held.columns(new), total, new)
            self.call.memo[key] = (mask, self._as_flash(taken) if mask is None else taken)
        return args, {**kwargs, "attention_mask": self.call.memo[key][1]}

    def _as_flash(self, mask: Tensor) -> Tensor:
        """A mask that was made for None, in the form of the attention implementation."""
        return mask[:, 0, -1] if "flash" in self.adapter.attention_implementation else mask

    def _compact(self, call: _Call, layer: int, given: Mapping[str, Any], hidden: Tensor) -> dict[str, Any]:
        """A layer's arguments for the rows that are left."""
        rows = call.rows
        assert rows is not None and call.layout is not None
        width = call.layout.mask.shape[1]
        flash = "flash" in self.adapter.attention_implementation

        def once(kind: str, value: Any, make: Callable[[], Any]) -> Any:
            key = (kind, id(value), id(rows))
            if key not in call.memo:
                call.memo[key] = (value, make())
            return call.memo[key][1]

        changed = dict(given)
        for name, value in given.items():
            if name == "attention_mask":
                changed[name] = once(name, value, lambda v=value: self._prefill_mask(call, v, layer, given))
            elif name.startswith("position_embeddings"):
                changed[name] = once(name, value, lambda v=value: take_nested(v, rows))
            elif name == "position_ids" and isinstance(value, Tensor):
                # flash attention would take gaps in the positions for several packed sequences
                changed[name] = None if flash else once(name, value, lambda v=value: take(v, rows, -1, -2))
            elif name == "cache_position" and isinstance(value, Tensor):
                changed[name] = value[rows[0].clamp(min=0).to(value.device)]
            elif name in self.adapter.sequence_kwargs and isinstance(value, Tensor):
                axis = self.adapter.sequence_kwargs[name]
                changed[name] = once(name, value, lambda v=value, a=axis: take(v, rows, a, 0))
            elif isinstance(value, Tensor) and width > 1 and name != "hidden_states" and width in value.shape[:3]:
                raise UnsupportedModelError(
                    f"layers of {type(self.model).__name__} get {name!r} {tuple(value.shape)}, which seems to follow"
                    f" the {width} tokens of the sequence",
                    "an adapter must name it in sequence_kwargs",
                )
        if "attention_mask" not in given:
            changed["attention_mask"] = self._prefill_mask(call, None, layer, given)
        return changed

    def _prefill_mask(self, call: _Call, mask: Any, layer: int, given: Mapping[str, Any]) -> Tensor | None:
        rows = call.rows
        assert rows is not None
        if mask is None:
            if not call.ragged:
                return None
            attention = self.adapter.attention(layer)
            causal = given.get("is_causal")
            causal = bool(getattr(attention, "is_causal", True)) if causal is None else bool(causal)
            if "flash" in self.adapter.attention_implementation:
                return rows >= 0
            made = causal_mask(rows, causal)
            if self.adapter.attention_implementation == "sdpa":
                return made
            dtype = self.adapter.decoder.dtype
            return torch.zeros(made.shape, dtype=dtype, device=made.device).masked_fill(~made, torch.finfo(dtype).min)
        if not isinstance(mask, Tensor) or mask.dim() not in (2, 4):
            raise UnsupportedFeatureError(
                f"layer {layer} got a mask of type {type(mask).__name__}", "use sdpa, eager or flash_attention_2"
            )
        if mask.dim() == 2:
            return take(mask, rows, 1, 0).masked_fill(rows.to(mask.device) < 0, 0)
        return prefill_mask(mask, rows.to(mask.device))

    # ---- pruning ---------------------------------------------------------------------------------------------

    def _prune(self, call: _Call, layer: int, hidden: Tensor) -> Tensor:
        """Score, select and compact before ``layer``; returns the hidden states that go on."""
        assert call.layout is not None
        stage = self.stages.index(layer)
        before = [sum(sizes) for sizes in call.counts]
        quotas = self._quotas(call, stage)
        after = [sum(sizes) for sizes in quotas]
        if after == before:
            call.selections.append(None)
            reason = "not pruned: the budget is no reduction" if call.rows is None else "nothing more to drop"
            self.run.stages.append(StageResult(layer, before, after, reason=reason))
            return hidden
        context = self._context(call, layer, hidden)
        start = _Clock(hidden.device)
        if call.replay is not None:
            selection = call.replay[stage]
        else:
            size = max(map(len, quotas))
            padded = [sizes + [0] * (size - len(sizes)) for sizes in quotas]
            selection = self.pruner.select(context, torch.tensor(padded, device=hidden.device))
            self._check_selection(selection, context, padded)
        self.run._clock.append((start, _Clock(hidden.device)))
        call.selections.append(selection)
        keep = selection.keep & context.visual_mask
        if selection.hidden is not None:
            target = context.visual_rows.masked_fill(~keep, -1)
            hidden = _replace(hidden, target, selection.hidden.to(hidden.dtype))

        # a row goes on when it is no visual token, or a kept one; padding of an earlier stage is dropped again
        dropped = _mark_rows(hidden.shape[1], context.visual_rows, context.visual_mask & ~keep)
        width_before = call.layout.mask.shape[1]
        kept_widths = [width_before - first + left for first, left in zip(self._first_counts, after, strict=True)]
        going = ~dropped if call.rows is None else ~dropped & (call.rows >= 0)
        index = keep_index(going, max(kept_widths))
        call.rows = index if call.rows is None else compose(call.rows, index)
        call.ragged = len(set(kept_widths)) > 1
        call.stage_rows[layer] = (call.rows, call.ragged)
        call.counts = quotas
        call.memo.clear()
        self.run.stages.append(
            StageResult(layer, before, after, rows=call.rows, _positions=context.positions, _keep=keep)
        )
        return take(hidden, index, 1, 0)

    @property
    def _first_counts(self) -> list[int]:
        assert self.call is not None and self.call.layout is not None
        width = self.call.layout.mask.shape[1]
        return [width - text for text in self.run._text_tokens]

    def _quotas(self, call: _Call, stage: int) -> list[list[int]]:
        """Tokens to keep per sample and group at one stage: the budget's count, shared out in proportion."""
        quotas = []
        for sample, sizes in enumerate(call.counts):
            first = self._first_counts[sample]
            if first == 0:
                quotas.append([0] * len(sizes))
                continue
            wanted = self.run.method.budget.keep(first, self.schedule)[stage]
            have = sum(sizes)
            if wanted >= have:
                quotas.append(list(sizes))
                continue
            if wanted < len(sizes):
                raise BudgetError(
                    f"sample {sample}: a budget of {wanted} visual tokens for {len(sizes)} images",
                    f"every image keeps at least one: ask for {len(sizes)} or more",
                )
            quotas.append(apportion(wanted, sizes))
        return quotas

    def _check_selection(self, selection: Selection, context: PruneContext, quotas: list[list[int]]) -> None:
        who = type(self.pruner).__name__
        if selection.keep.shape != context.visual_mask.shape or selection.keep.dtype != torch.bool:
            raise ScoreError(
                f"pruner {who} returned keep of {tuple(selection.keep.shape)} {selection.keep.dtype}",
                f"return bool {tuple(context.visual_mask.shape)}",
            )
        groups = torch.arange(len(quotas[0]), device=context.groups.device)
        member = (context.groups[:, :, None] == groups) & (selection.keep & context.visual_mask)[:, :, None]
        kept = member.sum(1).tolist()
        if kept != quotas:
            raise ScoreError(f"pruner {who} kept {kept} tokens per image at layer {context.layer}", f"keep {quotas}")

    def _context(self, call: _Call, layer: int, hidden: Tensor) -> PruneContext:
        """What scorers may see at a stage."""
        layout = call.layout
        assert layout is not None
        device = hidden.device
        rows = call.rows
        is_visual, groups = layout.mask.to(device), layout.groups.to(device)
        if rows is not None:
            gone = rows < 0
            is_visual = is_visual.gather(1, rows.clamp(min=0)) & ~gone
            groups = groups.gather(1, rows.clamp(min=0)).masked_fill(gone, -1)
        size = max(sum(sizes) for sizes in call.counts)
        order = (~is_visual).int().argsort(dim=1, stable=True)[:, :size]
        visual = is_visual.gather(1, order)
        visual_rows = order.masked_fill(~visual, 0)
        positions = visual_rows if rows is None else rows.gather(1, visual_rows)
        row_mask = self._row_mask(call, hidden)
        last = row_mask.int().cumsum(1).argmax(1)
        return PruneContext(
            layer=layer,
            num_layers=self.adapter.num_layers,
            num_heads=self.adapter.num_heads,
            visual_mask=visual,
            visual_rows=visual_rows,
            positions=positions,
            groups=groups.gather(1, order).masked_fill(~visual, -1),
            last_row=last,
            row_mask=row_mask,
            hidden_rows=hidden,
            sample_ids=call.sample_ids,
            captured={key.split()[0]: value for key, value in call.captured.items() if key.endswith(f" {layer}")},
            make_probe=(lambda: self._probe(call, layer)) if "attention" in self.needs else None,
            make_grid=lambda: self._grid(call, positions, visual),
            annotations=self._annotations(call, positions, visual),
        )

    def _row_mask(self, call: _Call, hidden: Tensor) -> Tensor:
        given = call.arguments.get("attention_mask")
        whole = torch.ones_like(call.layout.mask) if call.layout is not None else None  # type: ignore[union-attr]
        assert whole is not None
        if isinstance(given, Tensor) and given.dim() == 2:
            whole = given.bool()
        whole = whole.to(hidden.device)
        if call.rows is None:
            return whole
        return whole.gather(1, call.rows.clamp(min=0)) & (call.rows >= 0)

    def _grid(self, call: _Call, positions: Tensor, visual: Tensor) -> Tensor:
        assert call.layout is not None
        grid = self.adapter.grid(call.arguments, call.layout)
        if grid is None:
            raise UnsupportedModelError(
                f"the adapter of {self.adapter.name!r} knows no token grid", "use a method that needs none"
            )
        grid = take(grid.to(positions.device), positions, 1, 0)
        return grid.masked_fill(~visual[:, :, None], -1)

    def _annotations(self, call: _Call, positions: Tensor, visual: Tensor) -> dict[str, Tensor]:
        """The caller's per-token values on the visual axis of this stage."""
        found = {}
        assert call.layout is not None
        batch, width = call.layout.mask.shape
        for name, items in self.run.annotations.items():
            if batch % len(items):
                raise ScoreError(
                    f"annotation {name!r} has {len(items)} vectors for a batch of {batch}", "give one per sample"
                )
            repeats = batch // len(items)  # beams and returned sequences repeat every sample
            whole = torch.zeros(batch, width)
            counts = self._first_counts
            where = call.layout.mask.cpu()
            for sample in range(batch):
                values = items[sample // repeats]
                if values.numel() != counts[sample]:
                    raise ScoreError(
                        f"annotation {name!r} of sample {sample} has {values.numel()} values",
                        f"give one per visual token: {counts[sample]}",
                    )
                whole[sample, where[sample]] = values.flatten()
            found[name] = whole.to(positions.device).gather(1, positions).masked_fill(~visual, 0.0)
        return found

    # ---- signals ---------------------------------------------------------------------------------------------

    def _capture(self) -> None:
        """Observe the layers before each stage during this prefill, and only what the method needs."""
        for stage in self.stages:
            if stage == 0:
                continue
            for name, projection in self.adapter.projections(stage - 1, self._states()).items():
                hook = self._store(f"{name} {stage}", projection)
                self.temporary.append(projection.module.register_forward_hook(hook))
            if "attention" in self.needs:
                layer = self.adapter.layers[stage - 1]
                self.temporary.append(layer.register_forward_pre_hook(self._note(stage), with_kwargs=True))

    def _store(self, key: str, projection: Projection) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Tensor) -> None:
            if self.call is not None:
                self.call.captured[key] = projection.read(output)

        return hook

    def _note(self, stage: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
            if self.call is not None:
                self.call.probed[str(stage)] = {
                    "embeddings": kwargs.get("position_embeddings"),
                    "mask": kwargs.get("attention_mask"),
                    "is_causal": kwargs.get("is_causal"),
                }

        return hook

    def _probe(self, call: _Call, layer: int) -> AttentionProbe:
        seen = call.probed[str(layer)]
        attention = self.adapter.attention(layer - 1)
        rotate = self.adapter.rotary(layer - 1)
        cos, sin = seen["embeddings"]
        mask = seen["mask"]
        causal = seen["is_causal"]
        causal = bool(getattr(attention, "is_causal", True)) if causal is None else bool(causal)
        query, key = call.captured[f"query {layer}"], call.captured[f"key {layer}"]

        def rotated(states: Tensor, keys: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
            return rotate(states, take(cos, index, -2, -3), take(sin, index, -2, -3)), rotate(keys, cos, sin)

        def visible(index: Tensor) -> Tensor:
            order = torch.arange(query.shape[1], device=query.device)
            earlier = order <= index[:, None] if causal else torch.ones_like(order <= index[:, None])
            if mask is None:
                return earlier
            if mask.dim() == 2:
                return mask.bool() & earlier
            row = take(mask[:, :1], index[:, None], 2, 0)[:, 0, 0]
            return row if row.dtype == torch.bool else row > torch.finfo(row.dtype).min / 2

        scaling = getattr(attention, "scaling", None) or query.shape[-1] ** -0.5
        softcap = getattr(attention, "attn_logit_softcapping", None)
        return AttentionProbe(query, key, rotated, visible, float(scaling), softcap)

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
        if ids is None or batch == 1:
            fresh = [True] * batch
        else:
            fresh = [True, *(ids[1:] != ids[:-1]).any(1).tolist()]
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
        earlier, key, selections = chain
        longer = ids.shape[0] == earlier.shape[0] and ids.shape[1] == earlier.shape[1] + 1
        if longer and key == _visual_key(call) and self._same_prompt(ids, earlier):
            return selections
        return None

    def _same_prompt(self, ids: Tensor, earlier: Tensor) -> bool:
        """Equal up to the last visual token: beams may swap the text that follows."""
        mask = self.adapter.visual_mask({"input_ids": earlier})
        if mask is None:
            return False
        end = int(mask.int().cumsum(1).argmax(1).max()) + 1
        return torch.equal(ids[:, :end], earlier[:, :end])

    def _not_pruned(self, counts: list[int], reason: str) -> None:
        self.run.stages = [StageResult(layer, counts, counts, reason=reason) for layer in self.stages]


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


def _visual_key(call: Mapping[str, Any]) -> tuple[Any, ...]:
    """Identity of a call's visual inputs: the same tensors, not equal ones."""
    names = sorted(name for name, value in call.items() if isinstance(value, Tensor) and name.startswith("pixel"))
    return tuple((name, call[name].data_ptr(), tuple(call[name].shape)) for name in names)


def _mark_rows(width: int, index: Tensor, chosen: Tensor) -> Tensor:
    """Bool ``[batch, width]`` that is True at ``index`` where ``chosen``; repeated indices are joined by "or"."""
    counts = torch.zeros(index.shape[0], width, dtype=torch.int32, device=index.device)
    return counts.scatter_add_(1, index, chosen.int()) > 0


def _replace(hidden: Tensor, target: Tensor, states: Tensor) -> Tensor:
    """``hidden`` with ``states`` at the rows ``target`` (-1: nowhere)."""
    batch, width, dim = hidden.shape
    padded = torch.cat([hidden, hidden.new_zeros(batch, 1, dim)], dim=1)
    index = target.masked_fill(target < 0, width)[:, :, None].expand(-1, -1, dim)
    return padded.scatter(1, index, states)[:, :width]
