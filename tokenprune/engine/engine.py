"""The order of events while a method is applied: recognises the call that begins, and asks it at each point.

A call enters the model, then its inner model, then the decoder and its layers. The first module of that chain that is
called begins the call. A call is one of three kinds: a prefill (:mod:`tokenprune.engine.prefill`), a decode step on a
pruned cache (:mod:`tokenprune.engine.decode`), or one that changes nothing.

The state of a call lives in the call, and the running calls belong to a thread: threads, nested calls and generators
do not meet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import Cache

from tokenprune.adapters.base import Adapter
from tokenprune.adapters.layout import VisualLayout, check_not_empty
from tokenprune.core.call_arguments import bound_arguments, given_cache
from tokenprune.engine import hooks, logits, refusals
from tokenprune.engine.cache import CacheOwner, check_cache, check_lengths, pruned_layer
from tokenprune.engine.calls import Call, ThreadState
from tokenprune.engine.capture import Captures
from tokenprune.engine.compiled import run_eagerly
from tokenprune.engine.decode import DecodeStep
from tokenprune.engine.layer_call import LayerCalls
from tokenprune.engine.loss import check_labels, prompt_targets
from tokenprune.engine.plan import Plan
from tokenprune.engine.prefill import Applied, Prefill, PromptInputs
from tokenprune.engine.prompt import count_text
from tokenprune.engine.quotas import Quotas
from tokenprune.engine.renumber import RenumberedStep, check_window, rotary_modules, smallest_window
from tokenprune.engine.samples import SampleCounter, given_ids
from tokenprune.engine.tower import TowerRecorder
from tokenprune.errors import TokenPruneError, UnsupportedFeatureError
from tokenprune.flops.decoder import prefill_cost
from tokenprune.recording import PrefillRecord, Recording, StageResult


class Engine:
    """One applied method on one model.

    Args:
        adapter: The model's adapter.
        recording: The method, and what it records for the caller.
    """

    def __init__(self, adapter: Adapter, recording: Recording) -> None:
        self.adapter, self.recording = adapter, recording
        self.thread = ThreadState()
        self.samples = SampleCounter()
        plan = self.plan = Plan.of(recording.method, recording.choice.layers, adapter)
        layers = [LayerCalls(layer, adapter.layer_signature) for layer in adapter.layers]
        reads_logits_to_keep = logits.is_read(adapter.model, adapter.decoder)
        self.applied = Applied(adapter, plan, layers, CacheOwner(self.thread), reads_logits_to_keep)
        self.tower = TowerRecorder(
            adapter, plan.tower_sites(adapter), plan.reads_tower_value, lambda: self.thread.current
        )
        captures = Captures(plan, adapter, layers, lambda: self.thread.current)
        self.layer_hooks = hooks.SharedHooks(self._hook_layers, stay=True)
        self.capture_hooks = hooks.SharedHooks(captures.register)
        self.output_hooks = hooks.SharedHooks(self._hook_outputs)
        self.loss_hooks = hooks.SharedHooks(lambda: [hooks.PatchedLoss(adapter.model, self._loss)])
        self.finished_calls = self.prompts = 0
        self._compared = [*(stage.layer for stage in plan.stages), adapter.num_layers - 1]  # of a cache
        # layers that may differ in the rows that their caches hold
        self._held = range(plan.stages[-1].layer + 1) if plan.cuts_earlier else [stage.layer for stage in plan.stages]
        self._window = smallest_window(adapter, plan.first) if plan.renumbered else None
        self._attached: list[hooks.Removable] = []

    # ---- putting it on the model, and taking it off ---

    def attach(self) -> None:
        """Put everything on the model that has to be there before a call."""
        model = self.adapter.model
        chain = list(dict.fromkeys([model, getattr(model, "base_model", model), self.adapter.decoder]))
        self._attached += run_eagerly(model)
        self._attached += refusals.register(self.adapter, self.plan.cuts_earlier)
        self._attached += [
            hooks.PatchedMethod(model, "generate", self._generating),
            hooks.observe_calls(model, "_expand_inputs_for_generation", self._expanding),
        ]
        for place, module in enumerate(chain[:-1]):
            enter = partial(self._enter_model, module, chain[place + 1 :])
            self._attached.append(hooks.PatchedMethod(module, "forward", enter, eager=True))
        self._attached.append(hooks.PatchedMethod(chain[-1], "forward", self._enter_decoder, eager=True))
        self._attached += self.tower.register()
        if self.plan.renumbered:
            modules = rotary_modules(self.adapter.decoder)
            self._attached += [hooks.PatchedMethod(module, "forward", self._rotate) for module in modules]

    def detach(self) -> None:
        """Take everything off again; pruned caches cannot be used from now on."""
        self.applied.owner.end()
        for shared in (self.layer_hooks, self.capture_hooks, self.output_hooks, self.loss_hooks):
            shared.close()
        for item in reversed(self._attached):
            item.remove()
        self._attached.clear()

    def why_nothing_was_pruned(self) -> TokenPruneError | None:
        """The error for a whole run in which the model ran and read no prompt; None if it read one."""
        if self.prompts or not self.finished_calls:
            return None
        return UnsupportedFeatureError(
            f"the model ran {self.finished_calls} times inside the apply block but never read a prompt there: nothing"
            " was pruned",
            "start the conversation inside the block, without a cache from before it",
        )

    def _hook_layers(self) -> list[hooks.Removable]:
        # before all other hooks: those shall see what the layer gets
        numbers = range(self.plan.first_cut, self.adapter.num_layers)
        return [hooks.before_layer(self.adapter.layers[n], n, self.thread) for n in numbers]

    def _hook_outputs(self) -> list[hooks.Removable]:
        numbers = range(self.plan.first, self.adapter.num_layers)
        return [hooks.after(self.adapter.layers[n], partial(self._after_layer, n)) for n in numbers]

    # ---- generation ---

    def _generating(self, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run ``generate``, and keep how often it repeats samples: this is known inside it only."""
        for prompt in (*args[:1], kwargs.get("inputs"), kwargs.get("input_ids")):
            if prompt is not None:
                check_not_empty(prompt)  # the vision tower runs before the first call, and would fail
        self.thread.copies.append(1)
        try:
            output = original(*args, **kwargs)
            if self.applied.owner.thread is None:  # without a cache, the steps after that were not pruned
                raise UnsupportedFeatureError(
                    "the apply block ended while generate was running", "end it when the generation has ended"
                )
            return output
        finally:
            self.thread.copies.pop()
            self.tower.drop_pending()

    def _expanding(self, arguments: Mapping[str, Any]) -> None:
        if self.thread.copies and "expand_size" in arguments:
            self.thread.copies[-1] = int(arguments["expand_size"])

    # ---- one call ---

    def _enter_model(
        self,
        module: nn.Module,
        awaited: list[nn.Module],
        original: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Run the model or its inner model: a new call, or the next module of the running one."""
        refusals.check_not_traced()
        current = self.thread.current
        if current is not None and module in current.awaited:
            current.awaited.remove(module)
            return original(*args, **kwargs)
        call = self._begin(bound_arguments(original, args, kwargs))
        call.awaited = list(awaited)
        try:
            output = self.thread.run(call, original, args, kwargs)
        except Exception as error:
            if call.hooks and self.applied.owner.thread is None:
                raise UnsupportedFeatureError(
                    "the apply block ended while a call of the model was running on another thread, or its run"
                    " was dropped",
                    "keep the run, and wait for all calls, also of other threads, before you end it",
                ) from error
            raise
        call.finish(output)
        self.thread.unseen_cache = call.unseen_cache
        self.finished_calls += 1
        return output

    def _enter_decoder(self, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        call = self.thread.current
        decoder = self.adapter.decoder
        if call is None or decoder not in call.awaited:
            raise UnsupportedFeatureError(
                f"{type(decoder).__name__} was called by itself inside an apply block: it is not told where the visual"
                " tokens are, and would run unpruned",
                f"call the {type(self.adapter.model).__name__} that apply was given, or leave the block",
            )
        call.awaited.clear()
        arguments = call.enter_decoder(bound_arguments(original, args, kwargs))
        if not call.changes_outputs:
            return call.leave_decoder(original(**arguments))
        with hooks.in_use(self.output_hooks):
            return call.leave_decoder(original(**arguments))

    def _rotate(self, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a rotary module of the decoder, and keep its arguments: they are needed again for other positions."""
        value, call = original(*args, **kwargs), self.thread.current
        if call is not None:
            call.see_rotary(original, bound_arguments(original, args, kwargs), value)
        return value

    def _after_layer(self, layer: int, module: nn.Module, args: Any, output: Any) -> Any:
        call = self.thread.current
        if call is None:
            return None
        hidden = output[0] if isinstance(output, tuple) else output
        changed = call.after_layer(layer, hidden)
        if changed is hidden:
            return None
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    def _loss(self, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run the model's loss function on the rows that are left."""
        call = self.thread.current
        return original(*args, **kwargs) if call is None else call.loss(original, args, kwargs)

    # ---- which kind of call ---

    def _begin(self, arguments: Mapping[str, Any]) -> Call:
        """Look at the arguments of a call and say what it is."""
        cache = given_cache(arguments)
        if cache is not None and not isinstance(cache, Cache):
            check_cache(cache, self.plan.first_cut)
        pruned = [layer for number in self._held if (layer := pruned_layer(cache, number)) is not None]
        if pruned:
            refusals.check_continuation(pruned[0].rows.owner is self.applied.owner, arguments, self.adapter)
        check_lengths(cache, self._compared)
        refusals.check_features(self.adapter, arguments)
        if pruned:
            ragged = any(layer.rows.ragged for layer in pruned)
            if self.plan.renumbered:
                mask = arguments.get("attention_mask")
                return RenumberedStep(self.applied.layers, self.layer_hooks, self.adapter, ragged, self._window, mask)
            return DecodeStep(self.applied.layers, self.layer_hooks, self.adapter, ragged)
        self.layer_hooks.drop()
        past = cache.get_seq_length() if cache is not None else 0
        ids = arguments.get("input_ids")
        brought = arguments.get("inputs_embeds") if ids is None else ids
        if past and brought is not None:
            refusals.check_mask_width(arguments.get("attention_mask"), past + brought.shape[1])
        if past and ids is not None and ids.shape[1] == 1:
            return Call()  # a decode step after an unpruned prefill: nothing to do, nothing to look at
        check_cache(cache, self.plan.first_cut)
        if cache is None:
            refusals.check_cache_arrived(arguments, self.thread.unseen_cache)
        layout = self.adapter.locate(arguments)
        if layout is None and past == 0:
            raise UnsupportedFeatureError(
                "the model was called without input_ids", "pass input_ids, not only embeddings"
            )
        sizes = count_images(layout) if layout is not None else []
        if past:
            refusals.check_no_new_images(sizes)
            return Call()  # an unpruned conversation goes on unpruned: exact
        assert layout is not None
        return self._begin_prompt(arguments, layout, sizes)

    def _begin_prompt(self, arguments: Mapping[str, Any], layout: VisualLayout, sizes: list[list[int]]) -> Call:
        self.prompts += 1
        batch, width = layout.mask.shape
        text = [width - sum(row) for row in sizes]
        labels = arguments.get("labels")
        record = PrefillRecord(text)
        runs = self.tower.take_pending(bool(arguments.get("mm_encoder_outputs")))
        self.recording.begin(record)
        if not any(map(sum, sizes)):
            reason, none = "not pruned: the prompt holds no visual tokens", [0] * batch
            record.stages += [StageResult(stage.layer, none, none, reason=reason) for stage in self.plan.stages]
            record.targets = None if labels is None else prompt_targets(labels)
            return Call()
        if labels is not None:
            check_labels(self.adapter.model, self.adapter.text_config, arguments)
        self.adapter.stack.check_prompt(self.plan.first_cut, width)
        refusals.check_checkpointing(self.adapter.layers[self.plan.first :])
        if self.plan.renumbered and self._window is not None:
            check_window(self._window, width)
        record.places = cache(partial(self.adapter.placed, self.adapter.without_pixels(arguments), layout))
        annotations = self.recording.annotations
        # a call with labels is no step of a generation
        replay = None if labels is not None else self.thread.replays.take(arguments, self.adapter)
        if self.plan.cuts_earlier:
            uncached = bool(self.thread.copies) and arguments.get("use_cache") is False
            refusals.check_generates_with_cache(not uncached and replay is None)
        sample_ids = self._sample_ids(annotations.sample_ids, batch, replay is not None)
        prefill = Prefill(
            self.applied,
            PromptInputs(arguments, layout, sample_ids, annotations.values, replay, bool(self.thread.copies)),
            Quotas(
                self.plan,
                sizes,
                partial(prefill_cost, self.adapter.config),
                partial(count_text, arguments, layout.mask),
            ),
            record,
            runs,
            self.thread.replays,
        )
        prefill.hooks = (self.layer_hooks,) if replay is not None else (self.layer_hooks, self.capture_hooks)
        if labels is not None:
            prefill.hooks += (self.loss_hooks,)
        return prefill

    def _sample_ids(self, ids: tuple[int, ...] | None, batch: int, replayed: bool) -> tuple[int, ...]:
        if ids is not None:
            return given_ids(ids, batch)
        if replayed:  # these samples have their numbers
            return (0,) * batch
        copies, thread = 1, self.thread
        if thread.copies:  # the generation's own prompt comes first; a call of somebody's inside it has other samples
            copies, thread.copies[-1] = thread.copies[-1], 1
        return self.samples.number(batch, copies)


@contextmanager
def attached(adapter: Adapter, recording: Recording) -> Iterator[Engine]:
    """Keep the method on the model inside the block.

    Args:
        adapter: The model's adapter.
        recording: The method, the layers before which it prunes, and what it records for the caller.

    Raises:
        TokenPruneError: The method cannot run on this model.
    """
    engine = Engine(adapter, recording)
    try:
        engine.attach()
        yield engine
    finally:
        engine.detach()


def count_images(layout: VisualLayout) -> list[list[int]]:
    """Visual tokens per sample and image, on the host: the one transfer that a prefill needs before it runs."""
    images = int(layout.groups.max()) + 1 if layout.groups.numel() else 0
    if images <= 0:
        return [[] for _ in range(layout.mask.shape[0])]
    member = layout.groups[:, :, None] == torch.arange(images, device=layout.groups.device)
    counts: list[list[int]] = member.sum(1).tolist()
    return [[n for n in sizes if n] for sizes in counts]
