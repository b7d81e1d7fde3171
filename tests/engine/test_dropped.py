"""A run that ends where nobody expects it: collected in the middle of a call, or copied and the copy dropped."""

from __future__ import annotations

import copy
import gc
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch

import tokenprune as tp
from tests.support.simple import fastv, pair
from tokenprune.engine import capture, reservation
from tokenprune.errors import UnsupportedFeatureError


class Service:
    """Holds its run in a circle of references: only the garbage collector ends it."""

    def __init__(self, model: Any) -> None:
        self.run, self.itself = tp.apply(model, fastv()), self


def finishes(work: Callable[[], None]) -> bool:
    """Whether work on another thread ends: one that waits for a lock of its own never does."""
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(60)
    return not thread.is_alive()


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_run_may_be_collected_while_its_model_begins_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """The collector may run on the thread that puts hooks on the model; none of them stays there."""
    own, raised = capture.Captures.register, []

    def collecting(self: Any) -> Any:
        registered = own(self)
        gc.collect()
        return registered

    monkeypatch.setattr(capture.Captures, "register", collecting)
    model, inputs = pair()

    def call() -> None:
        with pytest.raises(UnsupportedFeatureError, match="its run was dropped") as error, torch.no_grad():
            model(**inputs)
        raised.append(error.type)

    Service(model)
    assert finishes(call)
    assert raised
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())
    tp.apply(model, fastv()).close()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_run_may_be_collected_while_another_model_is_reserved(monkeypatch: pytest.MonkeyPatch) -> None:
    own, (first, _), (second, _) = reservation.check_free, pair(), pair()

    def collecting(decoder: Any) -> None:
        gc.collect()
        own(decoder)

    monkeypatch.setattr(reservation, "check_free", collecting)
    gc.disable()
    try:
        Service(first)
        assert finishes(lambda: tp.apply(second, fastv()).close())
    finally:
        gc.enable()
    tp.apply(first, fastv()).close()


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
@torch.no_grad()
def test_a_copy_of_a_run_ends_nothing(copied: Callable[[Any], Any], recwarn: pytest.WarningsRecorder) -> None:
    model, inputs = pair()
    with tp.apply(model, fastv()) as run:
        expected = model(**inputs).logits
        other = copied(run)
        assert other.closed
        assert other.report.after == [5, 5]
        del other
        gc.collect()
        assert torch.equal(model(**inputs).logits, expected)
    assert not [warning for warning in recwarn if warning.category is ResourceWarning]


@torch.no_grad()
def test_a_model_that_holds_its_run_can_be_copied() -> None:
    """The copy is an ordinary, unpruned model, as any other copy."""
    model, inputs = pair()
    plain = model(**inputs).logits
    model.pruning = tp.apply(model, fastv())
    expected = model(**inputs).logits
    other = copy.deepcopy(model)
    assert torch.equal(other(**inputs).logits, plain)
    del other
    gc.collect()
    assert torch.equal(model(**inputs).logits, expected)
    model.pruning.close()


@pytest.mark.slow
def test_a_process_may_end_with_an_open_run() -> None:
    """Without a word: what is on the model is taken off before Python takes itself apart."""
    script = """
import tokenprune as tp
from tests.support.simple import fastv, pair
model, inputs = pair()
run = tp.apply(model, fastv())
model(**inputs)
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300, check=True)
    assert "Traceback" not in ended.stderr, ended.stderr


@pytest.mark.slow
@pytest.mark.parametrize("block", ["tp.apply(model, fastv())", "tp.apply(model, None) as run, run.using(fastv())"])
def test_a_process_may_end_inside_a_block(block: str) -> None:
    """By an error, while a generator holds the block: Python ends the block when torch is partly gone."""
    script = f"""
import tokenprune as tp
from tests.support.simple import fastv, pair
model, inputs = pair()
def answers():
    with {block}:
        yield model(**inputs)
def main():
    found = answers()
    next(found)
    1 / 0
main()
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 1, ended.stderr
    assert ended.stderr.splitlines()[-1] == "ZeroDivisionError: division by zero"


def test_a_run_is_not_pickled() -> None:
    model, _ = pair()
    with tp.apply(model, fastv()) as run, pytest.raises(UnsupportedFeatureError, match="a run cannot be pickled"):
        pickle.dumps(run)
