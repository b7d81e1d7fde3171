"""Long calls show a bar in a notebook without an argument, and nothing anywhere else."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import tokenprune as tp
from tests.support.kernel import in_kernel
from tests.support.matrix import model_of
from tests.support.tiny import CASES
from tests.support.toy import config
from tokenprune.core.notebook import Bar, NotebookBar, Progress, in_notebook, progress_in_notebooks
from tokenprune.experiment import run_experiment


@progress_in_notebooks
def work(steps: int, progress: Progress | None = None) -> bool:
    """Whether somebody listens."""
    for step in range(steps if progress else 0):
        assert progress is not None
        progress("works", step + 1, steps)
    return progress is not None


def test_a_terminal_is_no_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "IPython", raising=False)
    assert not in_notebook()
    assert not work(3)
    terminal = SimpleNamespace(get_ipython=lambda: SimpleNamespace())
    monkeypatch.setitem(sys.modules, "IPython", terminal)  # type: ignore[arg-type]
    assert not in_notebook()
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: None))  # type: ignore[arg-type]
    assert not in_notebook()


def test_one_bar_serves_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = in_kernel(monkeypatch)
    monkeypatch.setattr("tokenprune.core.notebook.PAUSE", 0.0)
    assert work(3)
    assert work(0)
    (bar,) = kernel.bars
    assert [(item.done, item.total) for item in bar] == [(1, 3), (2, 3), (3, 3)]


def test_a_callback_of_the_caller_is_the_only_one(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = in_kernel(monkeypatch)
    seen = []
    work(2, progress=lambda *step: seen.append(step))
    work(1, lambda *step: seen.append(step))
    assert seen == [("works", 1, 2), ("works", 2, 2), ("works", 1, 1)]
    assert kernel.bars == []


def test_steps_that_nobody_can_see_are_left_out_but_never_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = in_kernel(monkeypatch)
    monkeypatch.setattr("tokenprune.core.notebook.time.monotonic", lambda: 5.0)
    bar = NotebookBar()
    for step in range(1, 100):
        bar("works", step, 99)
    assert [item.done for item in kernel.bars[0]] == [1, 99]


def test_a_bar_is_html_and_a_text() -> None:
    bar = Bar("<layer> 3", 2, 8, 4.2)
    assert bar._repr_html_() == '<progress value="2" max="8"></progress> &lt;layer&gt; 3: 2 of 8, 4 s'
    assert repr(bar) == "<layer> 3: 2 of 8, 4 s"


def test_long_calls_show_a_bar(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    kernel = in_kernel(monkeypatch)
    run_experiment(config(str(tmp_path / "run"), budgets=[{"name": "keep_count", "tokens": 2}]))
    assert len(kernel.bars) == 1
    model = model_of("llava", "sdpa")
    batches = [CASES["llava"].batch(model, 2, "left", seed=seed).inputs for seed in (3, 4)]
    tp.measure_entropy(model, batches, cache=False)
    assert kernel.bars[1][-1].what == "entropy"
    assert (kernel.bars[1][-1].done, kernel.bars[1][-1].total) == (2, 2)
    with tp.apply(model, tp.load_method("entropyprune", keep_tokens=5), calibration=batches) as run:
        model(**batches[0])
    assert run.choice.layers
    assert kernel.bars[2][-1].what.startswith("before layer ")
    assert kernel.bars[2][-1].done <= kernel.bars[2][-1].total
