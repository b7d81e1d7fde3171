"""Several methods on one applied model, on several threads at once: each call is what its method alone makes of it."""

from __future__ import annotations

import copy
import gc
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import chain
from typing import Any

import pytest
import torch
from torch import Tensor

import tokenprune as tp
from tests.support import matrix
from tests.support.matrix import model_of
from tests.support.oracle import oracle_generate_logits, tolerance
from tests.support.simple import fastv
from tests.support.tiny import CASES
from tests.support.tiny.core import CACHE
from tokenprune.adapters.towers import TowerRun

THREADS, ROUNDS, STEPS = 8, 3, 4
RATIO = {"name": "keep_ratio", "ratio": 0.4}
MERGES = {"visionzip"}  # the oracle only hides tokens


@lru_cache
def methods(family: str) -> dict[str, tp.Method | None]:
    """Methods that act at different layers, and read different things."""
    tower = tp.load_method("vision-attention", keep_ratio=0.5).model_dump(mode="json")
    return {
        "unpruned": None,
        "attention": fastv([1]),
        "attention, other budget": fastv([1], name="keep_count", tokens=3),
        "later layer": fastv([3], **RATIO),
        "stages": fastv([1, 2], name="keep_schedule", ratios=[0.6, 0.3]),
        "renumbered": matrix.method([0], RATIO, positions="renumbered"),
        "cuts caches": matrix.method([2], RATIO, cut_earlier_caches=True),
        "tower": tp.Method.from_dict(tower),
        "merges": tp.load_method("visionzip", keep_ratio=0.5) if family == "llava" else fastv([2], **RATIO),
        "measured": tp.Method(
            layers={"name": "entropy_collapse", "published": False, "fallback": 1, "min_relative": 0.001},
            pruner={"name": "topk", "scorer": "fastv"},
            budget=RATIO,
        ),
        "input": matrix.method([0], {"name": "keep_count", "tokens": 5}),
    }


def generated(model: Any, inputs: dict[str, Tensor], more: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Ids and logits."""
    out = model.generate(
        **inputs, max_new_tokens=STEPS, return_dict_in_generate=True, output_logits=True, do_sample=False, **more
    )
    return out.sequences[:, inputs["input_ids"].shape[1] :], torch.stack(out.logits, 1)


def on_model(model: Any) -> tuple[int, int]:
    """Hooks and replaced methods on a model; transformers has some of its own."""
    modules = list(model.modules())
    hooks = sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in modules)
    return hooks, sum("forward" in vars(module) for module in modules) + ("generate" in vars(model))


WAYS: list[dict[str, Any]] = [{}, {"use_cache": False}, {"num_beams": 2}]


def call_of(names: list[str], thread: int, step: int) -> tuple[str, int, dict[str, Any]]:
    """The method, the batch and the way to generate of a thread's call."""
    name, way = names[(thread + step * 3) % len(names)], WAYS[(thread + step) % 3]
    refused = name == "cuts caches" and "use_cache" in way  # there is no cache to cut
    return name, (thread * ROUNDS + step) % 6, {} if refused else way


@pytest.mark.parametrize("family", ["llava", "qwen3_vl"])
@torch.no_grad()
def test_eight_threads_with_methods_of_their_own(family: str) -> None:
    """Each call gives the ids, logits and report that it gives alone under an `apply` of its method.

    Greedy calls with a cache are compared with the masked model, too.
    """
    torch.set_num_threads(1)
    case, model = CASES[family], model_of(family, "sdpa")
    known = methods(family)
    kinds: list[Any] = ["image", "ragged", "multi"]
    batches = [case.batch(model, 1 + n % 2, "left", seed=n, variant=kinds[n % 3]).inputs for n in range(6)]
    names = list(known)
    plan = [[call_of(names, thread, step) for step in range(ROUNDS)] for thread in range(THREADS)]

    alone: dict[str, tuple[tuple[Tensor, Tensor], list[int]]] = {}
    for name, number, more in chain.from_iterable(plan):
        key = f"{name} {number} {more}"
        if key in alone:
            continue
        if known[name] is None:
            alone[key] = generated(model, batches[number], more), []
        else:
            with tp.apply(model, known[name], batches[0] if name == "measured" else None) as run:
                alone[key] = generated(model, batches[number], more), run.report.after

    barrier = threading.Barrier(THREADS, timeout=60)
    before = on_model(model)
    measured = known["measured"]
    assert measured is not None
    with tp.apply(model, fastv([2]), batches[0], also=[measured]) as run:

        def work(thread: int) -> list[tuple[str, int, dict[str, Any], Any, Any]]:
            barrier.wait()
            done = []
            for name, number, more in plan[thread]:
                with run.using(known[name]) as part:
                    out = generated(model, batches[number], more)
                done.append((name, number, more, out, part))
            return done

        with ThreadPoolExecutor(THREADS) as pool:
            results = list(chain.from_iterable(pool.map(work, range(THREADS))))
    assert len(results) == THREADS * ROUNDS
    for name, number, more, (ids, logits), part in results:
        inputs = batches[number]
        (expected_ids, expected), after = alone[f"{name} {number} {more}"]
        assert torch.equal(ids, expected_ids), name
        assert float((logits - expected).abs().max()) <= tolerance(expected), name
        if known[name] is None:
            assert part.report.reason == "not pruned: the method of the call is None"
            assert part.report.before == part.report.after
            continue
        assert part.report.after == after, name
        assert name != "measured" or "no calibration" not in part.choice.reason
        if more == {} and name not in ("renumbered", "merges"):
            stages = matrix.stages_of(part)
            hidden = oracle_generate_logits(
                model, inputs, ids, stages, case.visual_ids, case.appended, name == "cuts caches"
            )
            assert float((logits - hidden).abs().max()) <= tolerance(hidden), name
    assert on_model(model) == before


@pytest.mark.parametrize("later", ["later layer", "renumbered", "cuts caches", "unpruned", "outside"])
@pytest.mark.parametrize("first", ["stages", "renumbered", "cuts caches", "tower"])
@torch.no_grad()
def test_a_cache_goes_on_with_the_method_that_pruned_it(first: str, later: str) -> None:
    """Whichever block a later turn is in, and while other methods prune prompts in between."""
    case, model = CASES["llava"], model_of("llava", "sdpa")
    known = methods("llava")
    inputs = case.batch(model, 2, "left", seed=7, variant="ragged").inputs
    other = case.batch(model, 1, "none", seed=8).inputs
    width, turn = inputs["input_ids"].shape[1], torch.tensor([[7, 9, 11], [12, 13, 14]])
    mask = torch.cat([inputs["attention_mask"], torch.ones(2, 3, dtype=torch.long)], 1)

    def go_on(cache: Any) -> Tensor:
        where = torch.arange(width, width + 3)[None] - (inputs["attention_mask"] == 0).sum(1)[:, None]
        out: Tensor = model(input_ids=turn, attention_mask=mask, position_ids=where, **{CACHE: cache}).logits
        return out

    with tp.apply(model, known[first]):  # type: ignore[arg-type]
        expected = go_on(model(**inputs)[CACHE])
    with tp.apply(model, fastv([2])) as run:
        with run.using(known[first]) as part:
            cache = model(**inputs)[CACHE]
        if later == "outside":
            model(**other)
            found = go_on(cache)
        else:
            with run.using(known[later]) as second:
                model(**other)
                found = go_on(cache)
            assert second.report.before == [16]
    assert sum(part.report.after) < sum(part.report.before)
    assert float((found - expected).abs().max()) <= tolerance(expected)


@torch.no_grad()
def test_one_method_costs_nothing_of_another() -> None:
    """Hooks on layers that only an ended block needed are gone with the next prompt, when no cache needs them."""
    case, model = CASES["llava"], model_of("llava", "sdpa")
    inputs = case.batch(model, 1).inputs
    layers = model.model.language_model.layers

    def hooked() -> list[int]:
        return [n for n, layer in enumerate(layers) if layer._forward_pre_hooks]

    with tp.apply(model, fastv([3])) as run:
        model(**inputs)
        assert hooked() == [3]
        with run.using(methods("llava")["cuts caches"]):
            out = model(**inputs)
            assert hooked() == [0, 1, 2, 3]
        model(**inputs)
        assert hooked() == [0, 1, 2, 3]  # the cache may go on
        del out
        model(**inputs)
        assert hooked() == [3]
        tower = model.model.vision_tower
        before = sum(len(module._forward_hooks) for module in tower.modules())
        with run.using(methods("llava")["tower"]) as part:
            model(**inputs)
        assert part.report.after == [8]
        assert sum(len(module._forward_hooks) for module in tower.modules()) == before
    assert hooked() == []


@torch.no_grad()
def test_a_call_inside_a_call_has_hooks_on_lower_layers() -> None:
    """As a call of another thread does that begins while this one runs, only surely."""
    case, model = CASES["qwen3_vl"], model_of("qwen3_vl", "sdpa")
    inputs, other = (case.batch(model, 1, seed=seed).inputs for seed in (1, 2))
    with tp.apply(model, fastv([1])) as run:
        expected = model(**other).logits
    inside: list[Tensor] = []

    def nested(*_: Any) -> None:
        hook.remove()
        with run.using(fastv([1])) as part:
            inside.append(model(**other).logits)
        assert part.report.after == [5]

    with tp.apply(model, fastv([3])) as run:
        outer = model(**inputs).logits
        hook = model.get_decoder().layers[3].register_forward_hook(nested)
        assert torch.equal(model(**inputs).logits, outer)
    assert torch.equal(inside[0], expected)


@torch.no_grad()
def test_a_generation_records_no_tower_for_another_method() -> None:
    """While the hooks of a method are on the tower, as on another thread, a generation of another holds no states."""
    case, model = CASES["llava"], model_of("llava", "sdpa")
    inputs = case.batch(model, 1).inputs
    tower = tp.load_method("vision-attention", keep_ratio=0.5)
    recorded: list[int] = []

    def within(ids: Tensor, scores: Tensor) -> Tensor:
        with run.using(fastv([2])):
            model.generate(**inputs, max_new_tokens=2, logits_processor=[look])
        return scores

    def look(ids: Tensor, scores: Tensor) -> Tensor:
        recorded.append(sum(isinstance(item, TowerRun) and bool(item.states) for item in gc.get_objects()))
        return scores

    with tp.apply(model, fastv([1])) as run:
        model.generate(**inputs, max_new_tokens=1, logits_processor=[look])
        with run.using(tower):
            model.generate(**inputs, max_new_tokens=1, logits_processor=[within])
    assert recorded == [0, 0, 0]


@torch.no_grad()
def test_without_a_method_of_its_own_a_run_prunes_in_blocks_only() -> None:
    case, model = CASES["llava"], model_of("llava", "sdpa")
    inputs = case.batch(model, 2, "left", variant="ragged").inputs
    plain = model(**inputs).logits
    with tp.apply(model, fastv([1])):
        expected = model(**inputs).logits
    with tp.apply(model, None) as run:
        assert torch.equal(model(**inputs).logits, plain)
        assert run.report.before == run.report.after == [32, 16]
        with run.using(fastv([1])) as part:
            cache = model(**inputs)
            assert torch.equal(cache.logits, expected)
            assert part.report.after == [5, 5]
        copied = copy.deepcopy(model)
        assert torch.equal(model(**inputs).logits, plain)
    assert torch.equal(copied(**inputs).logits, plain)
    with tp.apply(model, None):
        pass  # nothing was called, and nothing was to be pruned
