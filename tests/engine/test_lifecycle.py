"""`apply` is like `open`: it acts at once; `with` or `close` ends it, and a run that is dropped ends itself."""

from __future__ import annotations

import gc
import logging
import weakref
from typing import Any

import pytest
import torch

import tokenprune as tp
from tests.support.simple import fastv, pair
from tests.support.tiny.core import CACHE
from tokenprune.adapters import adapter_for
from tokenprune.engine.trials.fidelity import UnprunedBatch
from tokenprune.errors import BusyModelError, UnsupportedFeatureError

TOKEN = torch.tensor([[9], [9]])


@torch.no_grad()
def logits(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    found: torch.Tensor = model(**inputs).logits
    return found


def test_it_acts_without_a_block_as_inside_one() -> None:
    model, inputs = pair()
    plain = logits(model, inputs)
    with tp.apply(model, fastv()) as block:
        expected = logits(model, inputs)
    run = tp.apply(model, fastv())
    assert not run.closed
    assert torch.equal(logits(model, inputs), expected)
    assert run.report.after == [5, 5]
    run.close()
    assert run.closed
    assert torch.equal(logits(model, inputs), plain)
    assert str(run.report).splitlines()[:-1] == str(block.report).splitlines()[:-1]  # but for the milliseconds
    assert run.look().stages[0].kept.sum() == 5


def test_close_is_quiet_the_second_time() -> None:
    model, inputs = pair()
    with tp.apply(model, fastv()) as run:
        logits(model, inputs)
        run.close()
        with tp.apply(model, fastv()) as other:  # the model is free
            logits(model, inputs)
    run.close()
    assert other.closed


def test_a_closed_run_begins_no_block() -> None:
    model, _ = pair()
    run = tp.apply(model, fastv())
    run.close()
    with pytest.raises(UnsupportedFeatureError, match="this run was closed"), run:
        pass


def test_a_block_in_its_own_block_is_refused() -> None:
    """Its end would take the method off, and the outer block would go on unpruned."""
    model, inputs = pair()
    with tp.apply(model, fastv()) as run:
        with pytest.raises(UnsupportedFeatureError, match="a with block of this run has begun"), run:
            pass
        logits(model, inputs)
        assert run.report.after == [5, 5]


@pytest.mark.parametrize("use_cache", [True, False])
@torch.no_grad()
def test_a_generation_that_outlives_its_run_is_an_error(use_cache: bool) -> None:
    """Without a cache nothing else would notice."""
    model, inputs = pair()
    run = tp.apply(model, fastv())

    def close(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        run.close()
        return scores

    with pytest.raises(UnsupportedFeatureError, match="block"):
        model.generate(**inputs, max_new_tokens=3, use_cache=use_cache, logits_processor=[close])


def test_an_open_run_keeps_the_model_busy() -> None:
    model, _ = pair()
    run = tp.apply(model, fastv())
    with pytest.raises(BusyModelError, match="or close the run"):
        tp.apply(model, fastv())
    run.close()
    tp.apply(model, fastv()).close()


@torch.no_grad()
def test_closing_says_that_nothing_was_pruned() -> None:
    """As the end of a block does, and only where no other error is on its way."""
    model, inputs = pair()
    cache = model(**inputs)[CACHE]
    run = tp.apply(model, fastv())
    model(input_ids=TOKEN, **{CACHE: cache})
    with pytest.raises(UnsupportedFeatureError, match="never read a prompt"):
        run.close()
    assert run.closed

    def interrupted() -> None:
        with tp.apply(model, fastv()):
            model(input_ids=TOKEN, **{CACHE: cache})
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        interrupted()


def test_a_dropped_run_takes_its_method_off_and_warns(caplog: pytest.LogCaptureFixture) -> None:
    """Python hides ResourceWarnings, so that it is logged, too."""
    model, inputs = pair()
    plain = logits(model, inputs)
    run = tp.apply(model, fastv())
    assert not torch.equal(logits(model, inputs), plain)
    with pytest.warns(ResourceWarning, match=r"'topk' was dropped without close\(\)"), caplog.at_level(logging.WARNING):
        del run
    assert "was dropped without close()" in caplog.text
    assert torch.equal(logits(model, inputs), plain)
    with pytest.warns(ResourceWarning):
        tp.apply(model, fastv())
    tp.apply(model, fastv()).close()


def test_a_closed_run_is_dropped_quietly(recwarn: pytest.WarningsRecorder) -> None:
    model, _ = pair()
    run = tp.apply(model, fastv())
    run.close()
    del run
    gc.collect()
    assert not [warning for warning in recwarn if warning.category is ResourceWarning]


@torch.no_grad()
def test_comparing_methods_drops_no_run(caplog: pytest.LogCaptureFixture) -> None:
    """What tunes and verification do many times."""
    model, inputs = pair()
    with caplog.at_level(logging.WARNING):
        UnprunedBatch(adapter_for(model), inputs, [1]).fidelity(fastv(), [1])
        gc.collect()
    assert not caplog.records


def test_a_closed_run_holds_nothing_of_the_model() -> None:
    model, inputs = pair()
    run = tp.apply(model, fastv())
    logits(model, inputs)
    run.close()
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
    assert run.report.after == [5, 5]
