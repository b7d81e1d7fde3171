"""Tasks and metrics of others that are wrong: one error that names them, before the first calibration or answer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.experiment.test_checks import FEW, MEASURED
from tests.support.toy import ToyTask, config
from tokenprune.errors import PluginError, SampleError
from tokenprune.experiment import choosing, run_experiment
from tokenprune.metrics.base import Metric
from tokenprune.tasks.base import Sample, checked_score
from tokenprune.tuning import TuneConfig, run_tune


class Short(Metric):
    """Its author forgot the choices."""

    def score(self, text: str, answers: Sequence[str]) -> float:  # type: ignore[override]
        return 1.0


class Picky(Metric):
    """It fails on every answer."""

    def score(self, text: str, answers: Sequence[str], choices: Sequence[str] = ()) -> float:
        return {"a": 1.0}[text]


class Measured(ToyTask):
    """The toy task with a metric."""

    metric: Metric

    def score(self, sample: Sample, text: str) -> float:
        return self.metric.score(text, sample.references, sample.choices)


class Unscored(ToyTask):
    """Its rule takes too little."""

    def score(self, text: str) -> float:  # type: ignore[override]
        return 1.0


class Shuffled(ToyTask):
    """Its calibration fails."""

    def calibration(self, count: int) -> Sequence[Sample]:
        return [{}["train"]]


class Lazy(ToyTask):
    """Its samples have no length."""

    def samples(self) -> Any:
        return iter(super().samples())


class Tuples(ToyTask):
    """Its samples are tuples."""

    def samples(self) -> Any:
        return [("a.png", "what?")]


@pytest.mark.parametrize(
    ("task", "words"),
    [
        (
            Measured(metric=Short()),
            r"metric .*:Short \(not registered\) failed \(TypeError: too many positional arg.*; repair",
        ),
        (
            Measured(metric=Picky()),
            r"metric .*:Picky \(not registered\) failed \(KeyError: 'w.*, line \d+\); repair its score",
        ),
        (
            Unscored(),
            r"task .*:Unscored .* failed \(TypeError: too many positional arguments; .*its score\(sample, text\)",
        ),
        (Shuffled(), r"task .*:Shuffled .* failed \(KeyError: 'train'; .*; repair its calibration\(count\)"),
        (Lazy(), r"task .*:Lazy .* failed \(TypeError: object of type .* has no len\(\); .*; repair its samples\(\)"),
        (Tuples(), "sample 1 of the task is of the type tuple, not a Sample; let its samples"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, ToyTask) else "",
)
def test_a_wrong_component_is_named_before_the_first_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: ToyTask, words: str
) -> None:
    measured = monkeypatch.setattr(choosing, "usable", lambda *rest: pytest.fail("it calibrated"))
    assert measured is None
    with pytest.raises(PluginError, match=words):
        run_experiment(config(str(tmp_path / "out"), task=task, methods=[MEASURED], calibration=2))
    assert not (tmp_path / "out").exists()


def test_a_tune_by_labels_names_it_too(tmp_path: Path) -> None:
    plain = {"methods": ("norm-hidden-large",), "budget": {"name": "layer_average", "ratio": 0.5}, "samples": 4}
    with pytest.raises(PluginError, match=r"metric .*:Short"):
        run_tune(
            TuneConfig.from_dict(
                {
                    "model": config("x").model,
                    "task": Measured(metric=Short()),
                    **plain,
                    "labels": True,
                    "output": str(tmp_path / "out"),
                }
            )
        )
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_task_that_fails_on_a_sample_loses_that_sample(tmp_path: Path) -> None:
    class Rows(list[Sample]):
        def __getitem__(self, index: Any) -> Any:
            return {}["image"] if index == 7 else super().__getitem__(index)

    class Broken(ToyTask):
        def samples(self) -> Sequence[Sample]:
            return Rows(super().samples())

    result = run_experiment(config(str(tmp_path), task=Broken(), **FEW))
    assert list(result.skipped) == [7]
    assert result.skipped[7].startswith("sample 8 of the task cannot be read (KeyError: 'image'; experiment/test_wrong")
    with pytest.raises(SampleError, match="sample 8 of the task cannot be read"):
        run_experiment(config(str(tmp_path / "strict"), task=Broken(), strict=True, **FEW))


def test_a_rule_that_fails_is_blamed_itself() -> None:
    class Wrong(Measured):
        def score(self, sample: Sample, text: str) -> float:
            return float(json.loads(text))

    with pytest.raises(PluginError, match=r"task .*Wrong .* failed .JSONDecodeError"):
        checked_score(Wrong(metric=Picky()), ToyTask().samples()[0], "no number")
