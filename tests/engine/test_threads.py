"""Several threads on one applied model: each has its own calls, and all are exact."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

import tokenprune as tp
from tests.support.simple import CASE, fastv, pair

THREADS, ROUNDS, STEPS = 4, 6, 4


def prompts() -> list[dict[str, Tensor]]:
    """Batches that differ in size, padding, image and question."""
    model = CASE.build()
    plans: list[Any] = ["image", "ragged", "multi", "text"]
    return [CASE.batch(model, 1 + n % 3, "left", seed=n, variant=plans[n % 4]).inputs for n in range(THREADS * 2)]


SCHEDULE = fastv([1, 2], name="keep_schedule", ratios=[0.6, 0.3])
TOWER = tp.load_method("visionzip", keep_ratio=0.3)  # generate runs the tower before the model


@pytest.mark.parametrize(
    ("method", "more"),
    [
        (SCHEDULE, {}),
        (SCHEDULE, {"num_beams": 2}),
        (SCHEDULE, {"use_cache": False}),
        (TOWER, {}),
        (TOWER, {"num_beams": 2}),
    ],
    ids=["plain", "beams", "no cache", "tower", "tower, beams"],
)
@torch.no_grad()
def test_threads_do_not_meet(method: tp.Method, more: dict[str, Any]) -> None:
    """Every thread gets what one thread alone gets, token by token and logit by logit."""
    torch.set_num_threads(1)
    model, _ = pair()
    batches = prompts()

    def answer(inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        out = model.generate(**inputs, max_new_tokens=STEPS, return_dict_in_generate=True, output_logits=True, **more)
        return out.sequences, torch.stack(out.logits)

    with tp.apply(model, method):
        expected = [answer(inputs) for inputs in batches]
        barrier = threading.Barrier(THREADS, timeout=60)

        def work(thread: int) -> list[tuple[int, tuple[Tensor, Tensor]]]:
            barrier.wait()
            order = [(thread + step) % len(batches) for step in range(ROUNDS)]
            return [(number, answer(batches[number])) for number in order]

        with ThreadPoolExecutor(THREADS) as pool:
            results = list(pool.map(work, range(THREADS)))
    for result in results:
        for number, (ids, logits) in result:
            assert torch.equal(ids, expected[number][0])
            torch.testing.assert_close(logits, expected[number][1], atol=1e-5, rtol=0)
    assert not any(vars(module).get("_forward_pre_hooks") for module in model.modules())


@torch.no_grad()
def test_a_thread_sees_its_own_annotations() -> None:
    """What a thread annotates holds on that thread; a thread that never does sees the latest."""
    model, inputs = pair(batch=1, padding="none")
    method = tp.Method(
        layers={"name": "fixed", "layers": [1]},
        pruner={"name": "topk", "scorer": {"name": "annotation", "field": "mark"}},
        budget={"name": "keep_count", "tokens": 1},
    )
    places = (inputs["input_ids"][0] == CASE.visual_ids[0]).nonzero()[:, 0]
    with tp.apply(model, method) as run:
        barrier = threading.Barrier(2, timeout=60)

        def mark(place: int) -> None:
            run.annotate(mark=[[float(n == place) for n in range(16)]])

        def other() -> int:
            mark(3)
            barrier.wait()  # both threads have annotated
            barrier.wait()  # the main thread has pruned
            model(**inputs)
            return int(run.stages[0].kept[0, 0])

        with ThreadPoolExecutor(2) as pool:
            theirs = pool.submit(other)
            mark(9)
            barrier.wait()
            model(**inputs)
            mine = int(run.stages[0].kept[0, 0])
            barrier.wait()
            assert theirs.result() == int(places[3])
            assert mine == int(places[9])
        mark(7)
        thread = threading.Thread(target=lambda: model(**inputs))
        thread.start()
        thread.join()
        assert int(run.stages[0].kept[0, 0]) == int(places[7])
