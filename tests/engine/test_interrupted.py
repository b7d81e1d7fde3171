"""Calls, caches and blocks that are interrupted: refused afterwards by name, and no trace is left."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import Any

import pytest
import torch
from torch import nn
from transformers import DynamicCache

import tokenprune as tp
from tests.support.simple import fastv, pair
from tests.support.tiny.core import CACHE
from tokenprune.engine.reservation import reserved
from tokenprune.engine.trials.calibrate import measure_entropy, observe
from tokenprune.errors import BusyModelError, UnsupportedFeatureError


@torch.no_grad()
def test_a_refused_crop_leaves_a_cache_that_is_refused() -> None:
    """``Cache.crop`` goes layer by layer: the unpruned layers are cropped before a pruned one refuses."""
    model, inputs = pair(batch=1, padding="none")
    with tp.apply(model, fastv([2])):
        cache = model(**inputs)[CACHE]
        with pytest.raises(UnsupportedFeatureError, match="cannot be cropped by 2 tokens: 0 follow its prompt"):
            cache.crop(-2)
        with pytest.raises(UnsupportedFeatureError, match=r"24 tokens in layer 0 and 26 in layer 2"):
            model(input_ids=torch.tensor([[7]]), **{CACHE: cache})


@pytest.mark.parametrize(("first", "broken"), [(1, 3), (2, 0), (2, 1)])
@torch.no_grad()
def test_the_cache_of_an_interrupted_prefill_is_refused(first: int, broken: int) -> None:
    model, inputs = pair(batch=1, padding="none")
    cache = DynamicCache()

    def interrupt(*args: Any) -> None:
        raise KeyboardInterrupt

    handle = model.model.language_model.layers[broken].self_attn.o_proj.register_forward_pre_hook(interrupt)
    with tp.apply(model, fastv([first])):
        with pytest.raises(KeyboardInterrupt):
            model(**inputs, **{CACHE: cache})
        handle.remove()
        with pytest.raises(UnsupportedFeatureError, match="a forward was interrupted"):
            model(input_ids=torch.tensor([[7]]), **{CACHE: cache})
        model(**inputs)


@torch.no_grad()
def test_a_cache_that_is_no_cache_is_refused_by_name() -> None:
    model, inputs = pair()
    with tp.apply(model, fastv()), pytest.raises(UnsupportedFeatureError, match="a tuple is not supported"):
        model(**inputs, **{CACHE: ((torch.zeros(1), torch.zeros(1)),)})


class Turnstile:
    """The first to pass waits until the gate opens."""

    def __init__(self) -> None:
        self.reached, self.gate = threading.Event(), threading.Event()

    def __call__(self, *args: Any) -> None:
        if not self.reached.is_set():
            self.reached.set()
            self.gate.wait(30)


def run_across_the_end(model: Any, inputs: dict[str, Any], turnstile: Turnstile, layer: int) -> BaseException:
    """The error of a call that passes the turnstile on a thread, while the block ends."""
    errors: list[BaseException] = []

    @torch.no_grad()
    def call() -> None:
        try:
            model(**inputs)
        except BaseException as error:
            errors.append(error)

    with tp.apply(model, fastv([layer])):
        thread = threading.Thread(target=call)
        thread.start()
        assert turnstile.reached.wait(30)
    turnstile.gate.set()
    thread.join()
    return errors[0]


def test_a_call_that_begins_while_the_block_ends_leaves_no_hook() -> None:
    turnstile = Turnstile()

    class SlowCache(DynamicCache):  # asked before the call has hooks
        def get_seq_length(self, *args: Any, **kwargs: Any) -> int:
            turnstile()
            return int(super().get_seq_length(*args, **kwargs))

    model, inputs = pair()
    error = run_across_the_end(model, {**inputs, CACHE: SlowCache()}, turnstile, 1)
    assert isinstance(error, UnsupportedFeatureError)
    assert "block ended while" in str(error)
    assert not any(layer._forward_pre_hooks for layer in model.model.language_model.layers)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_call_that_runs_while_the_block_ends_says_so(place: int) -> None:
    model, inputs = pair()
    turnstile = Turnstile()
    handle = model.model.language_model.layers[place].register_forward_hook(turnstile)
    error = run_across_the_end(model, inputs, turnstile, 1)
    handle.remove()
    assert isinstance(error, tp.TokenPruneError)
    assert "block ended while" in str(error) or "never ran" in str(error)


def test_one_reservation_at_a_time() -> None:
    """Looking for the mark and setting it are one step: the second thread looks before the first one sets it."""

    class Slow(dict[str, Any]):
        def get(self, *args: Any) -> Any:
            seen = super().get(*args)
            time.sleep(0.05 if threading.current_thread().name == "first" else 0.2)
            return seen

    decoder = nn.Linear(1, 1)
    decoder.__dict__ = Slow(vars(decoder))
    inside: list[str] = []

    def work() -> None:
        with contextlib.suppress(BusyModelError), reserved(decoder):
            inside.append(threading.current_thread().name)
            time.sleep(0.5)

    threads = [threading.Thread(target=work, name=name) for name in ("first", "second")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(inside) == 1


@torch.no_grad()
def test_a_model_is_not_measured_while_it_prunes() -> None:
    """The curves of a pruned model are not those of the model."""
    model, inputs = pair(batch=1, padding="none")
    with tp.apply(model, fastv()):
        with pytest.raises(BusyModelError):
            measure_entropy(model, [inputs], cache=False)
        with pytest.raises(BusyModelError):
            observe(model, inputs, lambda layer, hidden, mask: None)
        with pytest.raises(BusyModelError):
            tp.choose_layers(model, tp.load_method("entropyprune"), [inputs])
        model(**inputs)
    measure_entropy(model, [inputs], cache=False)
