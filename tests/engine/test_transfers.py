"""Host transfers in a prefill: the counts before it runs, the flags after it; nothing for every stage in between."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tokenprune as tp
from tests.support.tiny import CASES
from tokenprune.adapters.layout import VisualLayout
from tokenprune.engine.method import count_images

PACKAGE = str(Path(tp.__file__).parent)

#: What copies values to the host, or waits for them.
READS = ("cpu", "tolist", "item", "numpy", "nonzero", "__bool__", "__int__", "__float__", "__index__")


@contextmanager
def reads() -> Iterator[Counter[str]]:
    """Counts reads of tensor values by code of the package, by file."""
    counts: Counter[str] = Counter()

    def counted(own: Callable[..., Any]) -> Callable[..., Any]:
        def read(self: Tensor, *args: Any, **kwargs: Any) -> Any:
            name = sys._getframe(1).f_code.co_filename
            if name.startswith(PACKAGE) and self.device.type != "meta":
                counts[str(Path(name).relative_to(PACKAGE))] += 1
            return own(self, *args, **kwargs)

        return read

    with pytest.MonkeyPatch.context() as patch:
        for name in READS:
            patch.setattr(Tensor, name, counted(getattr(Tensor, name)))
        yield counts


def stages(pruner: Any, *tokens: int) -> tp.Method:
    return tp.Method(
        layers={"name": "fixed", "layers": list(range(1, 1 + len(tokens)))},
        pruner=pruner,
        budget={"name": "keep_schedule", "ratios": [count / 16 for count in tokens]},
    )


@torch.no_grad()
def counted(case_name: str, variant: Any, method: tp.Method) -> Counter[str]:
    case = CASES[case_name]
    model = case.build()
    inputs = case.batch(model, 2, "left", variant=variant).inputs
    with tp.apply(model, method) as run, reads() as counts:
        model(**inputs)
    assert run.report.reason is None
    return counts


@pytest.mark.parametrize("scorer", ["fastv", "matrix_entropy", "vision_attention"])
def test_stages_cost_no_transfers(scorer: str) -> None:
    """Three stages read as often as one."""
    pruner = {"name": "topk", "scorer": scorer}
    one, three = (counted("llava", "multi", stages(pruner, *tokens)) for tokens in ((9,), (12, 9, 5)))
    assert one == three
    assert sum(count for name, count in one.items() if name.startswith(("pruners", "scorers", "ops"))) == 0
    engine = {name: count for name, count in one.items() if name.startswith("engine")}
    # the number of images and their sizes before the prefill; the flags after it
    assert engine == {"engine/method.py": 2, "engine/prefill.py": 1}


def test_labels_bring_nothing_more_to_the_host() -> None:
    """The lost targets are counted on the device, and come to the host with the report."""
    case = CASES["llava"]
    model = case.build()
    inputs = case.inputs(model)
    counts = []
    for labels in (None, inputs["input_ids"]):
        with tp.apply(model, stages({"name": "topk", "scorer": "fastv"}, 5)) as run, reads() as count:
            model(**inputs, labels=labels, use_cache=True)
        counts.append(count)
    assert counts[0] == counts[1]
    assert sum(run.report.targets or []) > 0


@pytest.mark.parametrize("name", ["llava_onevision", "qwen2_5_vl"])
def test_the_grid_is_asked_for_once(name: str) -> None:
    """Three merging rounds read the grid and the frames three times: the adapter makes them once."""
    pruner = {"name": "framefusion"}
    one, three = (counted(name, "video", stages(pruner, *tokens)) for tokens in ((9,), (12, 9, 5)))
    adapters = [{n: c for n, c in counts.items() if n.startswith("adapters")} for counts in (one, three)]
    assert adapters[0] == adapters[1]
    # a pruner that decides how many survive: their number comes to the host after each stage
    assert three["engine/selection.py"] - one["engine/selection.py"] <= 2
    assert three["engine/method.py"] == one["engine/method.py"] == 2


def test_the_counter_counts() -> None:
    """The tests above can fail."""
    with reads() as counts:
        count_images(VisualLayout(torch.ones(1, 3, dtype=torch.bool), torch.zeros(1, 3, dtype=torch.long)))
    assert counts == {"engine/method.py": 2}
