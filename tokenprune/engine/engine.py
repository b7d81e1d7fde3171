"""The order of events while methods are applied: recognises the call that begins, and asks it at each point.

A call enters the model, then its inner model, then the decoder and its layers. The first module of that chain that is
called begins the call. A call is one of three kinds: a prefill (:mod:`tokenprune.engine.prefill`), a decode step on a
pruned cache (:mod:`tokenprune.engine.decode`), or one that changes nothing.

The engine holds what belongs to the model. What belongs to a method is in :mod:`tokenprune.engine.method`: the run's
own, and one for each ``using`` block that is open. The prompt of a call is pruned by the method of its block; a cache
that was pruned goes on with the method that pruned it, whichever block the call is in.

The state of a call lives in the call, and the running calls belong to a thread: threads, nested calls and generators
do not meet.
"""

import threading
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from operator import attrgetter
from typing import Any
from weakref import WeakSet

from torch import nn
from transformers.cache_utils import Cache

from tokenprune.adapters.base import Adapter
from tokenprune.adapters.layout import check_not_empty
from tokenprune.core.call_arguments import bound_arguments, given_cache
from tokenprune.engine import hooks, logits, refusals, uses
from tokenprune.engine.assisted import candidates_after_prompt
from tokenprune.engine.calls import Call, ThreadState
from tokenprune.engine.compiled import run_eagerly
from tokenprune.engine.continuation import Continuation, OnModel, owner_of
from tokenprune.engine.graphs import Graphs, mark_interrupted
from tokenprune.engine.layer_call import LayerCalls
from tokenprune.engine.method import AppliedMethod
from tokenprune.engine.plan import Plan
from tokenprune.engine.renumber import rotary_modules
from tokenprune.engine.tower import TowerRecorder
from tokenprune.engine.unpruned import Unpruned
from tokenprune.engine.uses import LayerHooks
from tokenprune.errors import TokenPruneError, UnsupportedFeatureError
from tokenprune.recording import Recording


class Engine:
    """An applied model: the run's own method on it, and those of its ``using`` blocks.

    Args:
        adapter: The model's adapter.
        recording: The run's own method, and what it records for the caller. If it does not prune, only calls inside
            ``using`` blocks are pruned.
        wrapper: What holds the model; None where nothing does.
    """

    def __init__(self, adapter: Adapter, recording: Recording, wrapper: nn.Module | None = None) -> None:
        self.adapter, self._wrapper = adapter, wrapper
        self.thread = ThreadState()
        self._graphs = Graphs(self.thread, adapter.layer_signature, adapter.num_layers - 1)
        self.key = object()  # stands for the engine in contexts, which may outlive it
        self.ended = False
        self.finished_calls = self.prompts = 0
        # reentrant: the garbage collector may end a dropped run on the thread that holds the lock
        self._lock = threading.RLock()
        self._attached: list[hooks.Removable] = []
        self._towers: dict[Hashable, TowerRecorder] = {}
        self._followed: set[Hashable] = set()  # what was put on the model for some methods only, and stays
        self._continuations: WeakSet[Continuation] = WeakSet()  # alive while a block or a pruned cache holds them
        first_cut, first = (partial(self._lowest, attrgetter(name)) for name in ("first_cut", "first"))
        self.layer_hooks = LayerHooks(self._hook_layer, first_cut, adapter.num_layers, stay=True)
        self.output_hooks = LayerHooks(self._hook_output, first, adapter.num_layers)
        calls = [LayerCalls(layer, adapter.layer_signature) for layer in adapter.layers]
        reads_logits_to_keep = logits.is_read(adapter.model, adapter.decoder)
        self.loss_hooks = hooks.SharedHooks(lambda: [hooks.PatchedLoss(adapter.model, self._loss)])
        self._on = OnModel(adapter, self.thread, calls, self.layer_hooks, self.loss_hooks, reads_logits_to_keep)
        plan = Plan.of(recording.method, recording.choice.layers, adapter) if recording.prunes else None
        self.own = self._make(recording, plan)

    # ---- putting it on the model, and taking it off ---

    def attach(self) -> None:
        """Put everything on the model that has to be there before a call."""
        model = self.adapter.model
        chain = list(dict.fromkeys([model, getattr(model, "base_model", model), self.adapter.decoder]))
        held = self._graphs.holds
        self._attached += run_eagerly(model if self._wrapper is None else self._wrapper, held)
        self._attached += refusals.register(self.adapter, lambda: self._method().plan)
        self._attached += [
            hooks.PatchedMethod(model, "generate", self._generating),
            hooks.PatchedMethod(
                model, "_get_candidate_generator", partial(candidates_after_prompt, lambda: self._method().plan)
            ),
            hooks.observe_calls(model, "_expand_inputs_for_generation", self._expanding),
        ]
        for place, module in enumerate(chain[:-1]):
            enter = partial(self._enter_model, module, chain[place + 1 :])
            self._attached.append(hooks.PatchedMethod(module, "forward", enter, eager=True, held=held))
        decoder = hooks.PatchedMethod(chain[-1], "forward", self._enter_decoder, eager=True, held=held)
        self._attached.append(decoder)
        self._follow(self.own)
        if self.own.tower is not None:
            self.own.tower.hooks.acquire()  # they stay: most calls use the run's own method

    def detach(self) -> None:
        """Take everything off again; pruned caches cannot be used from now on."""
        self.ended = True
        with self._lock:
            continuations, towers = list(self._continuations), list(self._towers.values())
        for continuation in continuations:
            continuation.end()
        own, tower_hooks = self.own.hooks, [tower.hooks for tower in towers]
        for shared in (self.layer_hooks, *own, self.output_hooks, self.loss_hooks, *tower_hooks):
            shared.close()
        for item in reversed(self._attached):
            item.remove()
        self._attached.clear()

    @contextmanager
    def using(self, recording: Recording, plan: Plan | None) -> Iterator[uses.Use[AppliedMethod | Unpruned]]:
        """Let the calls of this context use another method inside the block.

        Args:
            recording: What the calls record.
            plan: The plan of the method; None leaves the calls unpruned.
        """
        method = self._make(recording, plan)
        self._follow(method)
        use = uses.Use(self.key, method)
        del method  # the block holds it, and lets it go at its end
        uses.begin(use)
        try:
            yield use
        finally:
            uses.end(use)

    def _make(self, recording: Recording, plan: Plan | None) -> AppliedMethod | Unpruned:
        if plan is None:
            return Unpruned(self._on, recording)
        return AppliedMethod(self._on, plan, recording, self._tower(plan))

    def _tower(self, plan: Plan) -> TowerRecorder | None:
        """What records the layers of the tower that a method reads; methods that read the same share it."""
        sites = plan.tower_sites(self.adapter)
        if not sites:
            return None
        key = (plan.tower_layers, plan.reads_tower_value)
        with self._lock:
            if key not in self._towers:
                watched = partial(self.thread.call_watched_by, key)
                generates = partial(self._generates_for, key)
                recorder = TowerRecorder(self.adapter, sites, plan.reads_tower_value, watched, generates, key)
                self._towers[key] = recorder
            return self._towers[key]

    def _follow(self, method: AppliedMethod | Unpruned) -> None:
        """Put on the model what a method needs between its calls, if no other has needed it before."""
        if isinstance(method, Unpruned):
            return
        with self._lock:
            self._continuations.add(method.continuation)
            tower = method.tower
            if tower is not None and tower.layers_read not in self._followed:
                self._followed.add(tower.layers_read)
                self._attached += tower.replace_methods()
            if method.plan.renumbered and "rotary" not in self._followed:
                self._followed.add("rotary")
                modules = rotary_modules(self.adapter.decoder)
                self._attached += [
                    hooks.PatchedMethod(module, "forward", self._rotate, held=_always) for module in modules
                ]
        self.layer_hooks.extend()
        self.output_hooks.extend()

    def _hook_layer(self, number: int) -> hooks.Removable:
        # before all other hooks: those shall see what the layer gets
        return hooks.before_layer(self.adapter.layers[number], number, self.thread, self._graphs)

    def _hook_output(self, number: int) -> hooks.Removable:
        return hooks.after(self.adapter.layers[number], partial(self._after_layer, number))

    def _lowest(self, layer: Callable[[Plan], int]) -> int:
        """The lowest layer that a plan names, of all methods in use and of all pruned caches."""
        with self._lock:
            firsts = [layer(continuation.plan) for continuation in self._continuations]
        return min(firsts, default=self.adapter.num_layers)

    @property
    def may_run_graphs(self) -> bool:
        """Whether steps on a static cache that was pruned may have run in graphs, which the engine does not see."""
        return self.layer_hooks.held

    def why_nothing_was_pruned(self) -> TokenPruneError | None:
        """The error for a whole run in which the model ran and read no prompt; None if it read one."""
        if self.prompts or not self.finished_calls or self.own.plan is None:
            return None
        return UnsupportedFeatureError(
            f"the model ran {self.finished_calls} times inside the apply block but never read a prompt there: nothing"
            " was pruned",
            "start the conversation inside the block, without a cache from before it",
        )

    # ---- generation ---

    def _generating(self, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run ``generate``, and keep how often it repeats samples: this is known inside it only."""
        for prompt in (*args[:1], kwargs.get("inputs"), kwargs.get("input_ids")):
            if prompt is not None:
                check_not_empty(prompt)  # the vision tower runs before the first call, and would fail
        method = self._method()
        carried = getattr(getattr(original, "func", None), "pruned_by", None)  # a partial that `from_pretrained` made
        if carried is not None and (self.own.plan is not None or uses.around(self.key)):
            model: Any = self.adapter.model
            original = partial(type(model).generate, model)  # the method that the caller names counts
        tower = method.tower
        self.thread.copies.append(1)
        try:
            with nullcontext() if tower is None else hooks.in_use(tower.hooks):
                output = original(*args, **kwargs)
            if self.ended and method.plan is not None:  # without a cache, the steps after that were not pruned
                raise UnsupportedFeatureError(
                    "the apply block ended while generate was running", "end it when the generation has ended"
                )
            return output
        finally:
            self.thread.copies.pop()
            if tower is not None:
                tower.drop_pending()

    def _generates_for(self, layers_read: Hashable) -> bool:
        """Whether the generation that runs on this thread wants these layers of the tower to be recorded."""
        tower = self._method().tower
        return tower is not None and tower.layers_read == layers_read

    def _expanding(self, arguments: Mapping[str, Any]) -> None:
        if self._method().plan is not None:
            refusals.check_repeats(arguments, self.adapter)
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
        arguments = bound_arguments(original, args, kwargs)
        call = self._begin(arguments)
        call.awaited = list(awaited)
        cache = given_cache(arguments)
        try:
            output = self.thread.run(call, original, args, kwargs)
        except BaseException as error:  # also Ctrl-C
            mark_interrupted(cache)
            if call.hooks and self.ended and isinstance(error, Exception):
                raise UnsupportedFeatureError(
                    "the apply block ended while a call of the model was running on another thread, or its run"
                    " was dropped",
                    "keep the run, and wait for all calls, also of other threads, before you end it",
                ) from error
            raise
        call.finish(output)
        mark_interrupted(cache, False)
        self.thread.unseen_cache = call.unseen_cache
        self.finished_calls += 1
        return output

    def _enter_decoder(self, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        call = self.thread.current
        decoder = self.adapter.decoder
        if call is None and self._method().plan is None:  # perhaps it began before the run did, on another thread
            return original(*args, **kwargs)
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
        if call is not None and call.reads_rotary:
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

    def _method(self) -> AppliedMethod | Unpruned:
        """What a prompt in this context is pruned by.

        Raises:
            UnsupportedFeatureError: The block has ended.
        """
        around = uses.around(self.key) if uses.opened() else []
        method: AppliedMethod | Unpruned = around[-1].method if around else self.own
        return method

    def _begin(self, arguments: Mapping[str, Any]) -> Call:
        """Look at the arguments of a call and say what it is."""
        inside = uses.opened()
        for use in uses.around(self.key) if inside else ():
            use.called = True
        cache = given_cache(arguments)
        owner = owner_of(cache, self.adapter.num_layers - 1)
        if owner is not None:
            if not isinstance(owner, Continuation) or owner.thread is not self.thread:
                raise refusals.pruned_elsewhere()
            if not self._brings_images(arguments):
                return owner.step(cache, arguments)
        method = self._method() if inside else self.own
        if owner is not None:
            plan = method.plan
            if plan is None:
                return owner.step(cache, arguments)  # what was dropped is missing, and the new images stay
            if plan.cuts != owner.plan.cuts:
                raise refusals.images_of_another_method(owner.plan.cuts, plan.cuts)
        method.check(cache, arguments)
        if owner is None:
            self.layer_hooks.drop()
        past = cache.get_seq_length() if isinstance(cache, Cache) else 0
        ids = arguments.get("input_ids")
        brought = arguments.get("inputs_embeds") if ids is None else ids
        if past and brought is not None:
            refusals.check_mask_width(arguments.get("attention_mask"), past + brought.shape[1])
        if past and owner is None and ids is not None and ids.shape[1] == 1:
            return Call()  # a decode step after an unpruned prefill: nothing to do, nothing to look at
        call = method.begin(arguments, cache, past)
        self.prompts += call.prunes or not past  # a prompt that was refused has not been read
        return call

    def _brings_images(self, arguments: Mapping[str, Any]) -> bool:
        """Whether a call on a pruned cache brings visual tokens: one transfer, and none in decode steps."""
        tokens = {name: arguments[name] for name in ("input_ids", "inputs_embeds") if arguments.get(name) is not None}
        if all(value.shape[1] == 1 for value in tokens.values()):
            return False
        visual = self.adapter.visual_mask(tokens)
        return visual is not None and bool(visual.any())


def _always(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """What Dynamo traces reads no rotary embedding."""
    return True


@contextmanager
def attached(adapter: Adapter, recording: Recording, wrapper: nn.Module | None = None) -> Iterator[Engine]:
    """Keep the method on the model inside the block.

    Args:
        adapter: The model's adapter.
        recording: The method, the layers before which it prunes, and what it records for the caller.
        wrapper: What holds the model and may be compiled; None where nothing does.

    Raises:
        TokenPruneError: The method cannot run on this model.
    """
    engine = Engine(adapter, recording, wrapper)
    try:
        engine.attach()
        yield engine
    finally:
        engine.detach()
