"""Calls that are left unpruned, by ``using(None)`` or ``apply(model, None)``: their prompts are counted, no more."""

from collections.abc import Mapping
from typing import Any

from tokenprune.engine import refusals
from tokenprune.engine.cache import cache_bytes
from tokenprune.engine.calls import Call
from tokenprune.engine.continuation import OnModel
from tokenprune.engine.hooks import SharedHooks
from tokenprune.engine.loss import prompt_targets
from tokenprune.engine.method import count_images, places_of
from tokenprune.engine.prefill import cache_after
from tokenprune.recording import PrefillRecord, Recording, StageResult, StageTokens

#: Why nothing was pruned, in reports.
REASON = "not pruned: the method of the call is None"


class Unpruned:
    """Stands in the place of a method where calls are not pruned. What a method refuses is allowed.

    Args:
        on: The model.
        recording: What it records for the caller.
    """

    plan = tower = continuation = None
    hooks: tuple[SharedHooks, ...] = ()

    def __init__(self, on: OnModel, recording: Recording) -> None:
        self._on, self._recording = on, recording

    def check(self, cache: Any, arguments: Mapping[str, Any]) -> None:
        """Refuse a call that may go on with what a method pruned, where the engine does not see it."""
        if cache is None and self._on.thread.unseen_cache:
            refusals.check_cache_arrived(arguments, after_unseen=True)

    def begin(self, arguments: Mapping[str, Any], cache: Any, past: int) -> Call:
        """A call that brings more than one token, or begins a sequence; arguments as for a method's."""
        adapter = self._on.adapter
        layout = None if past else adapter.locate(arguments)
        if layout is None:
            return Call()
        sizes = count_images(layout)
        counts = [sum(row) for row in sizes]
        record = PrefillRecord([layout.mask.shape[1] - count for count in counts])
        layers = self._recording.choice.layers
        every = StageTokens.every(layout.mask) if any(counts) else None
        record.stages += [StageResult(layer, counts, counts, reason=REASON, tokens=every) for layer in layers]
        record.places = places_of(adapter, arguments, layout)
        labels = arguments.get("labels")
        record.targets = None if labels is None else prompt_targets(labels)
        self._recording.begin(record)
        return UnprunedPrompt(record, arguments)


class UnprunedPrompt(Call):
    """The prefill of a prompt that is not pruned.

    Args:
        record: The part that the caller sees.
        arguments: The arguments of the model's forward, by name.
    """

    def __init__(self, record: PrefillRecord, arguments: Mapping[str, Any]) -> None:
        super().__init__()
        self._record, self._arguments = record, arguments

    def finish(self, output: Any) -> None:
        """Note how large the KV cache is."""
        self._record.kv_bytes = self._record.kv_bytes_unpruned = cache_bytes(cache_after(output, self._arguments))
