"""Methods of a model that are replaced for a while."""

from __future__ import annotations

from collections.abc import Mapping
from inspect import signature
from typing import Any

import pytest
import torch
from torch import nn

import tokenprune as tp
from tests.support.simple import pair
from tokenprune.engine.hooks import BeforeForward, PatchedMethod, SharedHooks, observe_calls


class Encoder:
    def encode(self, pixels: int, sizes: int = 0, **options: Any) -> tuple[int, int]:
        if sizes < 0:
            raise ValueError(sizes)
        return pixels, sizes


def test_arguments_are_told_by_name_and_end_with_the_call() -> None:
    told: list[Mapping[str, Any]] = []
    encoder = Encoder()
    replaced = observe_calls(encoder, "encode", told.append)
    assert encoder.encode(3, 4) == (3, 4)
    assert encoder.encode(3, sizes=5, dtype="half") == (3, 5)
    with pytest.raises(ValueError, match="-1"):
        encoder.encode(1, -1)
    assert told == [
        {"pixels": 3, "sizes": 4},
        {},
        {"pixels": 3, "sizes": 5, "dtype": "half"},
        {},
        {"pixels": 1, "sizes": -1},
        {},
    ]
    assert list(signature(encoder.encode).parameters) == ["pixels", "sizes", "options"]
    replaced.remove()
    assert not vars(encoder)
    encoder.encode(1, 2)
    assert len(told) == 6


def test_replacements_are_taken_off_one_by_one() -> None:
    encoder = Encoder()
    outer = PatchedMethod(encoder, "encode", lambda original, args, kwargs: ("outer", original(*args)))
    inner = PatchedMethod(encoder, "encode", lambda original, args, kwargs: ("inner", original(*args)))
    assert encoder.encode(1, 2) == ("inner", ("outer", (1, 2)))  # type: ignore[comparison-overlap]
    inner.remove()
    assert encoder.encode(1, 2) == ("outer", (1, 2))  # type: ignore[comparison-overlap]
    outer.remove()
    assert encoder.encode(1, 2) == (1, 2)


def test_what_is_not_there_is_not_put_there() -> None:
    encoder = Encoder()
    PatchedMethod(encoder, "decode", lambda original, args, kwargs: original(*args)).remove()
    assert not vars(encoder)
    assert not hasattr(encoder, "decode")


def test_removal_in_any_order_leaves_nothing() -> None:
    encoder = Encoder()
    first = PatchedMethod(encoder, "encode", lambda original, args, kwargs: ("first", original(*args)))
    second = PatchedMethod(encoder, "encode", lambda original, args, kwargs: ("second", original(*args)))
    held = encoder.encode
    first.remove()
    assert encoder.encode(1, 2) == ("second", (1, 2))  # type: ignore[comparison-overlap]
    second.remove()
    assert not vars(encoder)
    assert held(1, 2) == (1, 2)  # whoever kept the replacement calls the method itself


def test_somebody_elses_replacement_stays() -> None:
    encoder = Encoder()
    ours = PatchedMethod(encoder, "encode", lambda original, args, kwargs: ("ours", original(*args)))
    inner = encoder.encode
    theirs = lambda *args: ("theirs", inner(*args))  # noqa: E731
    encoder.encode = theirs  # type: ignore[method-assign, assignment]
    ours.remove()
    assert vars(encoder) == {"encode": theirs}
    assert encoder.encode(1, 2) == ("theirs", (1, 2))  # type: ignore[comparison-overlap]


class Handle:
    """Counts what is on the model."""

    on = 0

    def __init__(self) -> None:
        Handle.on += 1

    def remove(self) -> None:
        Handle.on -= 1


def test_shared_hooks_are_on_while_somebody_needs_them() -> None:
    Handle.on = 0
    shared = SharedHooks(lambda: [Handle(), Handle()])
    shared.acquire()
    shared.acquire()
    assert Handle.on == 2  # registered once
    shared.release()
    shared.drop()
    assert Handle.on == 2  # the other call is running
    shared.release()
    assert Handle.on == 0


def test_hooks_that_stay_are_dropped_when_nobody_needs_them() -> None:
    Handle.on = 0
    shared = SharedHooks(lambda: [Handle()], stay=True)
    shared.acquire()
    shared.release()
    assert Handle.on == 1
    shared.acquire()
    shared.drop()
    assert Handle.on == 1
    shared.release()
    shared.drop()
    assert Handle.on == 0


def test_a_hook_called_without_kwargs_does_nothing() -> None:
    """torch calls it so while another thread is registering or removing it."""
    told: list[Any] = []
    hook = BeforeForward(lambda module, args, kwargs: told.append(kwargs))
    hook(nn.Identity(), ())
    assert not told
    hook(nn.Identity(), (), {})
    assert told == [{}]


@pytest.mark.parametrize("fails", [False, True])
@torch.no_grad()
def test_nothing_is_left_on_a_model(fails: bool) -> None:
    """Also when a call fails in a layer; hooks, replaced methods and paused compilation are all gone."""
    model, inputs = pair()
    layer = model.model.language_model.layers[2]
    layer.compile(backend="eager")
    model.generate(**inputs, max_new_tokens=1)  # transformers puts hooks of its own on a model when it first runs
    before = state_of(model)
    compiled = layer._compiled_call_impl
    with tp.apply(model, tp.load_method("visionzip", keep_ratio=0.3)) as run:
        model.generate(**inputs, max_new_tokens=2)
        assert run.report.reason is None
        if fails:
            with pytest.raises(ZeroDivisionError):
                broken(model, inputs)
            model(**inputs)  # the next call is not disturbed
    assert state_of(model) == before
    assert layer._compiled_call_impl is compiled


def state_of(model: nn.Module) -> list[Any]:
    """Attributes of all modules, and how many hooks they have."""
    return [(set(vars(m)), len(m._forward_pre_hooks), len(m._forward_hooks)) for m in model.modules()]


def broken(model: Any, inputs: Any) -> None:
    """A forward that fails in the last layer."""

    def fail(module: Any, args: Any) -> None:
        raise ZeroDivisionError

    handle = model.model.language_model.layers[-1].register_forward_pre_hook(fail)
    try:
        model(**inputs)
    finally:
        handle.remove()
