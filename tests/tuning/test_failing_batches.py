"""Tunes on batches that fail: their samples are measured one by one, and what fails alone is left out."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

import tokenprune as tp
from tests.support.broken import letter
from tests.support.failing import Failing
from tests.support.toy import ToyModel, ToyTask, config
from tokenprune.errors import ForwardError, SampleError
from tokenprune.experiment.choosing import calibration
from tokenprune.models.usable import usable
from tokenprune.tuning import TuneConfig, TuneResult, run_tune

AVERAGE = {"name": "layer_average", "ratio": 0.5}


@pytest.fixture(autouse=True)
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports are drawn for longer than these tunes run."""
    monkeypatch.setattr(TuneResult, "write", lambda self, output: [])


def tune(folder: Path, **changes: Any) -> TuneResult:
    plain = {"model": ToyModel(), "task": ToyTask(), "methods": ("norm-hidden-large",), "budget": AVERAGE, "samples": 6}
    return run_tune(TuneConfig.from_dict({**plain, "batch_size": 3, "output": str(folder), **changes}))


def measured(result: TuneResult) -> dict[str, Any]:
    (ranking,) = result.rankings
    return {row.name: (row.samples.agreement.tolist(), row.samples.average.tolist()) for row in ranking.ranked}


@pytest.mark.slow
@pytest.mark.parametrize(
    "why", [{"most": 1}, {"most": 1, "memory": True}, {"apart": True}, {"most": 1, "pruned": True}], ids=str
)
@pytest.mark.parametrize("more", [{}, {"labels": True}, {"tokens": 2}], ids=str)
def test_a_batch_that_fails_is_measured_sample_by_sample(
    tmp_path: Path, why: dict[str, Any], more: dict[str, Any]
) -> None:
    if more and why != {"most": 1, "pruned": True}:
        pytest.skip("the unpruned model fails before answers play a part")
    found = tune(tmp_path / "out", model=Failing(**why), **more)
    alone = tune(tmp_path / "alone", batch_size=1, **more)
    assert not found.skipped
    assert measured(found) == measured(alone)


@pytest.mark.slow
def test_a_tune_that_fell_back_goes_on(tmp_path: Path) -> None:
    found = tune(tmp_path, model=Failing(most=1, pruned=True))
    before = (tmp_path / "samples.jsonl").read_bytes()
    assert measured(tune(tmp_path, model=Failing(most=1, pruned=True))) == measured(found)
    assert (tmp_path / "samples.jsonl").read_bytes() == before


@pytest.mark.slow
def test_a_sample_that_fails_alone_is_left_out(tmp_path: Path) -> None:
    found = tune(tmp_path, model=Failing(letter="d"))
    assert found.skipped
    for name, why in found.skipped.items():
        assert re.match(rf"the unpruned model on sample '{name}': RuntimeError: shapes differ", why)
    (ranking,) = found.rankings
    assert {len(row.samples) for row in ranking.ranked} == {6 - len(found.skipped)}
    with pytest.raises(SampleError, match=r"the unpruned model on sample 's\d+': RuntimeError"):
        tune(tmp_path / "strict", model=Failing(letter="d"), strict=True)


@pytest.mark.slow
def test_a_candidate_that_fails_on_a_sample_is_refused_with_it(tmp_path: Path) -> None:
    """The other candidates are compared on all samples."""
    with pytest.raises(tp.errors.ConfigError, match=r"no candidate can run; the first.*RuntimeError: shapes differ"):
        tune(tmp_path, model=Failing(letter="a", pruned=True))


def test_batches_that_nobody_can_divide_are_one_error() -> None:
    """Those of tp.tune are the caller's."""
    loaded = Failing(most=1).load()
    batch = loaded.encode(ToyTask().samples()[:4])
    with pytest.raises(ForwardError, match=r"RuntimeError: shapes differ \(support/failing.py, line"):
        tp.tune(loaded.model, [batch], AVERAGE, ["norm-hidden-large"])


def test_calibration_samples_that_fail_are_passed_over() -> None:
    model = Failing(letter="d")
    whole = config("-", model=model, calibration=6)
    loaded = model.load()
    inputs = calibration(whole, loaded)
    assert inputs is not None
    samples = whole.task.calibration(6)
    assert len(inputs) == sum("d" not in sample.question for sample in samples)
    assert 0 < len(inputs) < 6
    assert not any(bool((item["input_ids"] == letter("d")).any()) for item in inputs)


def test_the_other_samples_stay_together() -> None:
    loaded, samples = Failing(letter="d").load(), ToyTask().samples()[:5]  # of 2 to 6 letters
    found = usable(loaded, samples, 5)
    assert [[sample.id for sample in batch] for batch in found.samples] == [["s0", "s1"]]
    assert [len(inputs["input_ids"]) for inputs in found.batches] == [2]
    assert list(found.skipped) == ["s2", "s3", "s4"]


def test_a_device_that_is_broken_stops_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = ToyModel().load()
    broken = getattr(torch, "AcceleratorError", None)
    if broken is None:
        pytest.skip("torch before 2.8 raises no error of its own")

    def fail(*_: Any) -> None:
        raise broken("CUDA error: device-side assert triggered")

    loaded.model.register_forward_hook(fail)
    with pytest.raises(ForwardError, match="device-side assert"):
        usable(loaded, ToyTask().samples()[:4], 2)
