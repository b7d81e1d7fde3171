"""`run.using`: another method or budget for the calls of a block, and a report of their own."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import threading
import weakref
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

import tokenprune as tp
from tests.support.matrix import method as random_method
from tests.support.simple import fastv, pair
from tests.support.tiny.core import CACHE
from tokenprune.errors import BudgetError, BusyModelError, ConfigError, UnsupportedFeatureError

EIGHT = {"name": "keep_count", "tokens": 8}


@torch.no_grad()
def logits(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    found: Tensor = model(**inputs).logits
    return found


def test_a_block_has_its_own_method_budget_and_report() -> None:
    model, inputs = pair()
    plain = logits(model, inputs)
    with tp.apply(model, fastv([2])) as run:
        own = logits(model, inputs)
        with run.using(fastv([1], **EIGHT)) as part:
            assert str(part.report) == "llava: no prefill yet"
            logits(model, inputs)
            with run.using(None) as unpruned:
                assert torch.equal(logits(model, inputs), plain)
            with run.using(run.method, keep_ratio=0.25) as budget:
                logits(model, inputs)
            assert part.report.after == [8, 8]
        assert torch.equal(logits(model, inputs), own)
        assert run.report.after == [5, 5]
    assert (part.report.after, budget.report.after, unpruned.report.after) == ([8, 8], [4, 4], [16, 16])
    assert (part.choice.layers, budget.choice.layers) == ((1,), (2,))
    assert unpruned.report.reason == "not pruned: the method of the call is None"
    assert unpruned.report.kv_bytes == unpruned.report.kv_bytes_unpruned > part.report.kv_bytes > 0
    assert part.look().stages[0].kept.sum() == 8  # also after the run
    assert unpruned.look().stages[0].kept.all()


def test_a_block_is_an_apply_of_its_own() -> None:
    """Samples are numbered from 0, and annotations are those of the part."""
    model, inputs = pair()
    random = random_method([1], EIGHT)
    with tp.apply(model, random) as alone:
        logits(model, inputs)
        first = alone.stages[0].kept
        logits(model, inputs)
        assert not torch.equal(alone.stages[0].kept, first)
    marked = tp.load_method("oracle", keep_tokens=2)
    with tp.apply(model, random) as run:
        for _ in range(2):
            with run.using(random) as part:
                logits(model, inputs)
            assert torch.equal(part.stages[0].kept, first)
        with run.using(marked) as part:
            part.annotate(foreground=[torch.arange(16.0)] * 2)
            logits(model, inputs)
            assert part.look().stages[0].kept.nonzero()[0].tolist() == [14, 15]
        with pytest.raises(tp.TokenPruneError, match="foreground"), run.using(marked):
            logits(model, inputs)


@pytest.mark.parametrize("use_cache", [True, False])
@torch.no_grad()
def test_a_failed_call_leaves_nothing_behind(use_cache: bool) -> None:
    model, inputs = pair()
    with tp.apply(model, fastv([2])) as run:
        own = model.generate(**inputs, max_new_tokens=3, use_cache=use_cache)
        with pytest.raises(ZeroDivisionError), run.using(None):
            raise ZeroDivisionError
        with pytest.raises(BudgetError), run.using(run.method, average_tokens=1):
            model.generate(**inputs, max_new_tokens=3, use_cache=use_cache)
        assert torch.equal(model.generate(**inputs, max_new_tokens=3, use_cache=use_cache), own)


def test_what_is_refused() -> None:
    model, inputs = pair()
    with tp.apply(model, fastv([2])) as run:
        cases: list[tuple[Any, dict[str, Any], type[Exception], str]] = [
            ("fastv", {}, ConfigError, r"using needs a Method, got str; use tp.load_method"),
            (None, {"keep_tokens": 5}, ConfigError, "using.None. prunes nothing, and a budget stands beside it"),
            (fastv(), {"keep": 5}, ConfigError, "keep=5 does not say what it counts"),
            (
                fastv(),
                {"budget": 5},
                ConfigError,
                "budget=5 is no name of a budget; give a name, or one",
            ),
            (fastv([9]), {}, tp.TokenPruneError, "layer 9 is out of range"),
        ]
        for method, fields, kind, message in cases:
            with pytest.raises(kind, match=message), run.using(method, **fields):
                pass
        with run.using(fastv()) as part:
            logits(model, inputs)
            with pytest.raises(UnsupportedFeatureError, match="shows a using block"), part.using(None):
                pass
        with pytest.raises(BusyModelError, match=r"use its run's using\(method\) for calls with another method"):
            tp.apply(model, fastv())
    with pytest.raises(UnsupportedFeatureError, match="it was closed"), run.using(None):
        pass


def test_a_run_that_is_closed_inside_a_block_is_an_error() -> None:
    model, inputs = pair()
    run = tp.apply(model, fastv())

    def answer() -> None:
        with run.using(None):
            run.close()
            logits(model, inputs)

    with pytest.raises(UnsupportedFeatureError, match="the run was closed inside a using block"):
        answer()


def test_methods_whose_layers_are_measured_are_measured_once() -> None:
    """`also` names them; a method of another budget whose layers do not depend on it has the same ones."""
    model, inputs = pair()
    calls: list[int] = []
    handle = model.model.language_model.layers[0].register_forward_hook(lambda *_: calls.append(1))
    entropy = tp.Method.from_dict(
        {
            "layers": {"name": "entropy_collapse", "published": False, "fallback": 1, "min_relative": 0.001},
            "pruner": {"name": "topk", "scorer": "fastv"},
            "budget": EIGHT,
        }
    )
    vtw = tp.Method.from_dict(
        entropy.model_dump(mode="json") | {"layers": {"name": "vtw", "start": 1, "fallback": 2}, "label": "measured"}
    )
    with tp.apply(model, fastv([2]), calibration=inputs, also=[entropy]) as run:
        assert calls, "it was measured"
        calls.clear()
        with run.using(entropy, keep_tokens=3) as part:
            logits(model, inputs)
        assert len(calls) == 1
        assert part.report.after == [3, 3]
        assert "no calibration" not in part.choice.reason
        refused = pytest.raises(ConfigError, match=r"the layers of 'measured' with this budget are measured.*also=\[")
        with refused, run.using(vtw):
            pass
    with tp.apply(model, fastv([2])) as run, run.using(entropy) as part:  # as `apply` without samples
        logits(model, inputs)
        assert "no calibration samples were given" in part.choice.reason
    handle.remove()


def test_also_is_checked_before_anything_is_applied() -> None:
    model, _ = pair()
    with pytest.raises(ConfigError, match="apply needs a Method, got str"):
        tp.apply(model, fastv(), also=["fastv"])  # type: ignore[list-item]
    with pytest.raises(tp.TokenPruneError, match="layer 9"):
        tp.apply(model, fastv(), also=[fastv([9])])
    tp.apply(model, fastv()).close()


def test_asyncio_and_to_thread() -> None:
    """A block belongs to the task, also where its calls run in `asyncio.to_thread`; tasks take turns inside theirs."""
    model, inputs = pair(batch=1)

    async def answer(run: tp.Run, tokens: int) -> list[int]:
        with run.using(run.method, keep_tokens=tokens) as part:
            await asyncio.sleep(0)
            await asyncio.to_thread(logits, model, inputs)
            await asyncio.sleep(0)
            return part.report.after

    async def serve(run: tp.Run) -> list[list[int]]:
        return await asyncio.gather(*(answer(run, tokens) for tokens in range(1, 9)))

    with tp.apply(model, fastv()) as run:
        assert asyncio.run(serve(run)) == [[tokens] for tokens in range(1, 9)]


def test_a_new_thread_has_a_context_of_its_own() -> None:
    """Neither `Thread` nor an executor takes the block along: that is an error, and `copy_context` the remedy."""
    model, inputs = pair(batch=1)

    def executor(run: tp.Run, pool: ThreadPoolExecutor) -> list[int]:
        with run.using(run.method, keep_tokens=3) as part:
            pool.submit(logits, model, inputs).result()
        return part.report.after

    def copied(run: tp.Run, pool: ThreadPoolExecutor) -> list[int]:
        with run.using(run.method, keep_tokens=3) as part:
            pool.submit(contextvars.copy_context().run, logits, model, inputs).result()
        return part.report.after

    def thread(run: tp.Run, _: Any) -> None:
        with run.using(run.method, keep_tokens=3):
            worker = threading.Thread(target=logits, args=(model, inputs))
            worker.start()
            worker.join()

    with tp.apply(model, fastv()) as run, ThreadPoolExecutor(1) as pool:
        for lost in (executor, thread):
            with pytest.raises(UnsupportedFeatureError, match=r"the model was not called inside.*copy_context\(\)"):
                lost(run, pool)
        assert run.report.after == [5]
        assert copied(run, pool) == [3]


def test_a_task_that_outlives_its_block_is_refused() -> None:
    """Its context is a copy of the block's. A pruned cache goes on all the same."""
    model, inputs = pair(batch=1)
    with tp.apply(model, fastv()) as run:
        with run.using(run.method, keep_tokens=3):
            cache = model(**inputs)[CACHE]
            context = contextvars.copy_context()
        with pytest.raises(UnsupportedFeatureError, match="the using block of this call has ended"):
            context.run(logits, model, inputs)
        with torch.no_grad():
            context.run(model, input_ids=torch.tensor([[9]]), **{CACHE: cache})
        logits(model, inputs)
        assert run.report.after == [5]


def pieces(run: tp.Run, model: Any, inputs: dict[str, Tensor]) -> Iterator[Tensor]:
    """A generator that yields inside a block, as a web framework advances it: each piece in another context."""
    with run.using(fastv(name="keep_count", tokens=3)):
        yield logits(model, inputs)
        yield logits(model, inputs)


def test_a_block_ends_where_it_began() -> None:
    """What a generator calls in another context is in no block: that is an error at the block's end."""
    model, inputs = pair(batch=1)
    with tp.apply(model, fastv()) as run:
        own = logits(model, inputs)
        body = pieces(run, model, inputs)
        first, second = (contextvars.copy_context().run(next, body) for _ in range(2))
        assert not torch.equal(first, own)
        assert torch.equal(second, own)
        with pytest.raises(UnsupportedFeatureError, match="the using block ended on another thread"):
            contextvars.copy_context().run(next, body)
        body = pieces(run, model, inputs)
        assert torch.equal(next(body), first)
        assert torch.equal(next(body), first)
        assert next(body, None) is None  # in one context all the way
        assert torch.equal(logits(model, inputs), own)


def test_a_generator_that_another_thread_drops_leaves_nothing_open() -> None:
    model, inputs = pair(batch=1)
    with tp.apply(model, fastv()) as run:
        own = logits(model, inputs)
        held = [pieces(run, model, inputs)]
        assert not torch.equal(next(held[0]), own)
        thread = threading.Thread(target=held.clear)
        thread.start()
        thread.join()
        assert torch.equal(logits(model, inputs), own)
        with run.using(None) as part:
            logits(model, inputs)
        assert part.report.after == [16]
        assert torch.equal(logits(model, inputs), own)


def test_an_async_generator_that_its_client_leaves() -> None:
    """The event loop closes it in another task."""
    model, inputs = pair(batch=1)

    async def parts(run: tp.Run) -> AsyncIterator[Tensor]:
        with run.using(fastv(name="keep_count", tokens=3)):
            yield logits(model, inputs)

    async def client(run: tp.Run) -> Tensor:
        async for _ in parts(run):
            break
        gc.collect()
        await asyncio.sleep(0.05)
        return logits(model, inputs)

    with tp.apply(model, fastv()) as run:
        own = logits(model, inputs)
        assert torch.equal(asyncio.run(client(run)), own)


def test_a_run_without_a_method_has_none() -> None:
    model, inputs = pair()
    with tp.apply(model, None) as run:
        assert run.method is None
        with pytest.raises(ConfigError, match=r"using\(None\) prunes nothing, and a budget stands beside it"):
            run.using(run.method, keep_tokens=4)  # checked at once, also without a with block
        with run.using(fastv()) as part:
            logits(model, inputs)
            assert part.method == fastv()
            with pytest.raises(UnsupportedFeatureError, match="this run shows a using block, or is a copy"), part:
                pass


@torch.no_grad()
def test_unpruned_calls_may_do_what_a_method_refuses() -> None:
    model, inputs = pair(batch=1)
    static = {"cache_implementation": "static", "disable_compile": True, "max_new_tokens": 3}
    labels = inputs["input_ids"]
    expected, loss = model.generate(**inputs, **static), model(**inputs, labels=labels).loss
    lookup = model.generate(**inputs, max_new_tokens=3, prompt_lookup_num_tokens=2)
    with tp.apply(model, fastv()) as run, run.using(None) as part:
        assert torch.equal(model.generate(**inputs, **static), expected)
        assert torch.equal(model(**inputs, labels=labels).loss, loss)
        assert (part.report.targets, part.report.lost_targets) == ([labels.shape[1] - 1], [0])
        assert torch.equal(model.generate(**inputs, max_new_tokens=3, prompt_lookup_num_tokens=2), lookup)
        assert part.report.before == [16]


def test_a_closed_run_and_its_parts_hold_nothing_of_the_model() -> None:
    model, inputs = pair()
    run = tp.apply(model, fastv())
    with run.using(tp.load_method("vision-attention", keep_tokens=3)) as part, run.using(None) as unpruned:
        logits(model, inputs)
    with run.using(run.method, keep_tokens=3) as part:
        cache = model(**inputs)[CACHE]
        context = contextvars.copy_context()
    run.close()
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
    assert part.report.after == [3, 3]
    assert unpruned.report.after == [16, 16]
    assert part.look().tokens == 16
    del cache, context
