"""One method in use on a model: the run's own, or that of one ``using`` block. It begins prefills."""

import threading
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any

import torch
from transformers.cache_utils import Cache

from tokenprune.adapters.base import Adapter
from tokenprune.adapters.layout import VisualLayout
from tokenprune.adapters.views import PlacedItem
from tokenprune.engine import hooks, refusals
from tokenprune.engine.cache import check_cache, check_can_be_cut, check_lengths, check_room
from tokenprune.engine.calls import Call
from tokenprune.engine.capture import Captures
from tokenprune.engine.continuation import Continuation, OnModel
from tokenprune.engine.earlier import EarlierTurns
from tokenprune.engine.loss import check_labels, check_width, prompt_targets
from tokenprune.engine.plan import Plan
from tokenprune.engine.prefill import Applied, Prefill, PromptInputs
from tokenprune.engine.prompt import count_text
from tokenprune.engine.quotas import Lengths, Quotas
from tokenprune.engine.renumber import check_window
from tokenprune.engine.replay import ThreadReplays
from tokenprune.engine.tower import TowerRecorder
from tokenprune.errors import ScoreError, UnsupportedFeatureError
from tokenprune.flops.decoder import prefill_cost
from tokenprune.recording import PrefillRecord, Recording, StageResult


class SampleCounter:
    """Numbers samples in the order in which a run sees them, over all threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._next = 0

    def number(self, batch: int, copies: int) -> tuple[int, ...]:
        """New ids for a batch in which ``generate`` repeated each sample ``copies`` times (beams, sequences)."""
        if copies < 1 or batch % copies:
            copies = 1
        with self._lock:
            start = self._next
            self._next += batch // copies
        return tuple(start + row // copies for row in range(batch))


def given_ids(ids: Sequence[int], batch: int) -> tuple[int, ...]:
    """The ids that the caller gave, for a batch that may repeat each sample.

    Raises:
        ScoreError: The batch is no multiple of them.
    """
    if not ids or batch % len(ids):
        raise ScoreError(f"{len(ids)} sample_ids for a batch of {batch}", "give one per sample")
    return tuple(i for i in ids for _ in range(batch // len(ids)))


class AppliedMethod:
    """One method in use on a model, and what it records.

    Args:
        on: The model.
        plan: The method's stages.
        recording: What it records for the caller.
        tower: Records the layers of the vision tower that the method reads; None where it reads none.

    Attributes:
        plan: As given.
        tower: As given.
        continuation: Owns the caches that the method prunes.
        hooks: The hooks that its prefills need and that no other method shares.
    """

    def __init__(self, on: OnModel, plan: Plan, recording: Recording, tower: TowerRecorder | None) -> None:
        self.plan, self.tower = plan, tower
        self._on, self._recording = on, recording
        self.continuation = Continuation(on, plan)
        self._applied = Applied(on.adapter, plan, on.layers, self.continuation, on.layer_hooks, on.reads_logits_to_keep)
        self._observer = object()  # stands for the method: hooks that hold itself would be a circle
        captures = Captures(plan, on.adapter, on.layers, partial(on.thread.call_watched_by, self._observer))
        self.hooks = (hooks.SharedHooks(captures.register),)
        self._samples = SampleCounter()
        self._replays = ThreadReplays()

    def check(self, cache: Any, arguments: Mapping[str, Any]) -> None:
        """Refuse a call on a cache that is whole, or without one, that the method cannot follow.

        Args:
            cache: The KV cache, may be None or something else.
            arguments: The arguments of the model's forward, by name.

        Raises:
            UnsupportedFeatureError: See :mod:`tokenprune.engine.refusals`.
        """
        if cache is not None and not isinstance(cache, Cache):
            check_cache(cache, self.plan.first_cut, self._on.adapter.stack)
        check_lengths(cache, self.continuation.compared)
        refusals.check_features(self._on.adapter, arguments)

    def begin(self, arguments: Mapping[str, Any], cache: Any, past: int) -> Call:
        """A call that brings more than one token, or begins a sequence.

        Args:
            arguments: The arguments of the model's forward, by name.
            cache: The KV cache, which is whole; None without one.
            past: Tokens that it holds.

        Raises:
            UnsupportedFeatureError: The method cannot follow the call exactly.
        """
        adapter = self._on.adapter
        check_cache(cache, self.plan.first_cut, self._on.adapter.stack)
        if cache is None:
            refusals.check_cache_arrived(arguments, self._on.thread.unseen_cache)
        layout = adapter.locate(arguments)
        if layout is None and past == 0:
            raise UnsupportedFeatureError(
                "the model was called without input_ids", "pass input_ids, not only embeddings"
            )
        sizes = count_images(layout) if layout is not None else []
        if layout is None or (past and not any(map(sum, sizes))):
            return Call()  # a conversation that is whole goes on with text: exact
        earlier = None
        if past:
            flash = "flash" in adapter.stack.attention_implementation
            earlier = EarlierTurns.of(cache, int(past), arguments, layout.mask.shape[1], flash)
        return self._begin_prompt(arguments, layout, sizes, cache, earlier)

    def _begin_prompt(
        self,
        arguments: Mapping[str, Any],
        layout: VisualLayout,
        sizes: list[list[int]],
        cache: Any,
        earlier: EarlierTurns | None,
    ) -> Call:
        adapter, thread = self._on.adapter, self._on.thread
        batch, width = layout.mask.shape
        past = 0 if earlier is None else earlier.past
        text = [width - sum(row) for row in sizes]
        labels = arguments.get("labels")
        record = PrefillRecord(text)
        runs = [] if self.tower is None else self.tower.take_pending(bool(arguments.get("mm_encoder_outputs")))
        self._recording.begin(record)
        if not any(map(sum, sizes)):
            reason, none = "not pruned: the prompt holds no visual tokens", [0] * batch
            record.stages += [StageResult(stage.layer, none, none, reason=reason) for stage in self.plan.stages]
            record.targets = None if labels is None else prompt_targets(labels)
            return Call()
        if labels is not None:
            check_labels(adapter.model, adapter.text_config, arguments)
            check_width(labels, width)
        adapter.stack.check_prompt(self.plan.first_cut, past + width)
        check_room(cache, past, width)
        refusals.check_checkpointing(adapter.layers[self.plan.first :])
        if self.continuation.window is not None:
            check_window(self.continuation.window, past + width)
        if earlier is not None:
            record.cached = [earlier.held(layer) for layer in range(adapter.num_layers)]
        record.places = places_of(adapter, arguments, layout)
        annotations = self._recording.annotations
        replays = self._replays.own
        # a call with labels is no step of a generation
        replay = None if labels is not None or earlier is not None else replays.take(arguments, adapter)
        if self.plan.cuts_earlier:
            check_can_be_cut(cache)
            uncached = bool(thread.copies) and arguments.get("use_cache") is False
            refusals.check_generates_with_cache(not uncached and replay is None)
        sample_ids = self._sample_ids(annotations.sample_ids, batch, replay is not None)
        prefill = Prefill(
            self._applied,
            PromptInputs(arguments, layout, sample_ids, annotations.values, replay, bool(thread.copies), earlier),
            Quotas(
                self.plan,
                sizes,
                lambda lengths: prefill_cost(adapter.config, lengths.text, lengths.cached),
                partial(lengths_of, arguments, layout, earlier, adapter.num_layers),
            ),
            record,
            runs,
            replays,
        )
        prefill.hooks = (self._on.layer_hooks,)
        if labels is not None:
            prefill.hooks += (self._on.loss_hooks,)
        if replay is None:
            prefill.hooks += self.hooks
            prefill.watched_by = (self._observer,)
            if self.tower is not None:
                prefill.hooks += (self.tower.hooks,)
                prefill.watched_by += (self.tower.layers_read,)
        return prefill

    def _sample_ids(self, ids: tuple[int, ...] | None, batch: int, replayed: bool) -> tuple[int, ...]:
        if ids is not None:
            return given_ids(ids, batch)
        if replayed:  # these samples have their numbers
            return (0,) * batch
        copies, thread = 1, self._on.thread
        if thread.copies:  # the generation's own prompt comes first; a call of somebody's inside it has other samples
            copies, thread.copies[-1] = thread.copies[-1], 1
        return self._samples.number(batch, copies)


def lengths_of(
    arguments: Mapping[str, Any], layout: VisualLayout, earlier: EarlierTurns | None, layers: int
) -> list[Lengths]:
    """What the cost of each sample's prefill depends on: a transfer to the host.

    Args:
        arguments: The arguments of the model's forward, by name.
        layout: Where the visual tokens are.
        earlier: The turns before this one; None in the first.
        layers: Decoder layers.
    """
    if earlier is None:
        return [Lengths(text) for text in count_text(arguments, layout.mask)]
    text = count_text(arguments, layout.mask, earlier.past)
    return [Lengths(*both) for both in zip(text, earlier.cached(layers, len(text)), strict=True)]


def places_of(
    adapter: Adapter, arguments: Mapping[str, Any], layout: VisualLayout
) -> Callable[[], Sequence[Sequence[PlacedItem]] | None]:
    """Tells where the visual tokens of a prompt lie on the pictures; it is found out when it is asked for."""
    return cache(partial(adapter.placed, adapter.without_pixels(arguments), layout))


def count_images(layout: VisualLayout) -> list[list[int]]:
    """Visual tokens per sample and image, on the host: the one transfer that a prefill needs before it runs."""
    images = int(layout.groups.max()) + 1 if layout.groups.numel() else 0
    if images <= 0:
        return [[] for _ in range(layout.mask.shape[0])]
    member = layout.groups[:, :, None] == torch.arange(images, device=layout.groups.device)
    counts: list[list[int]] = member.sum(1).tolist()
    return [[n for n in sizes if n] for sizes in counts]
