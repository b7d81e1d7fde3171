"""``tuned`` in experiments: a tune on calibration samples chooses the method, once, and the experiment says which."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.processes import started
from tests.support.toy import ToyModel, ToyTask, config
from tokenprune.cli.tables import print_plan
from tokenprune.errors import ConfigError, OutputError, TokenPruneError
from tokenprune.experiment import ExperimentConfig, ExperimentResult, markdown, run_experiment
from tokenprune.experiment.dry_run import plan_experiment
from tokenprune.experiment.part import Part
from tokenprune.experiment.tuned import Tune, TuneSettings
from tokenprune.tuning import TuneResult

HALF = {"name": "layer_average", "ratio": 0.6}
KEY = "tuned / layer_average 0.6"
TUNE = {"samples": 6, "first": 2, "methods": ["fastv", "visionzip", "divprune"]}


def tuned(output: Path, budgets: list[dict[str, Any]] | None = None, tune: Any = None, **changes: Any) -> Any:
    """The toy experiment with a tuned method beside a stated one."""
    entry = {"name": "tuned", "tune": TUNE | (tune or {})}
    return config(str(output), **{"methods": ["fastv", entry], "budgets": budgets or [HALF], "oracle": False} | changes)


def choices(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "choices.json").read_text())
    return found


def canonical(folder: Path) -> list[str]:
    return sorted((folder / "samples.jsonl").read_text().splitlines())


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ExperimentResult]:
    folder = tmp_path_factory.mktemp("tuned")
    return folder, run_experiment(tuned(folder))


class NoTuneError(Exception):
    """A tune ran where none should."""


@pytest.fixture
def no_tune(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any) -> TuneResult:
        raise NoTuneError

    monkeypatch.setattr("tokenprune.experiment.choosing.run_tune", fail)


def test_the_found_method_runs_like_any_other(finished: tuple[Path, ExperimentResult], tmp_path: Path) -> None:
    """Its answers are those of the same method by name, and everything says which it is."""
    folder, result = finished
    found = choices(folder)[KEY]
    files = folder / "tuned" / "layer_average-0.6"
    assert {"tuned.yaml", "report.md", "tune.jsonl", "samples.jsonl"} <= {path.name for path in files.iterdir()}
    assert found["layers"] == found["tuned"]["method"]["layers"]["layers"]
    assert found["tuned"]["name"] in found["tuned"]["sentence"]
    assert f"The tune for `{KEY}`: {found['tuned']['sentence']}" in markdown(result)
    definition = json.loads((folder / "series.json").read_text())[KEY]["tuned"]
    assert definition["settings"]["samples"] == 6
    assert definition["budget"]["name"] == "layer_average"

    by_file = config(str(tmp_path), methods=[str(files / "tuned.yaml")], budgets=[HALF], oracle=False)
    run_experiment(by_file)
    assert [row for row in canonical(tmp_path) if KEY in row] == [row for row in canonical(folder) if KEY in row]


@pytest.mark.slow
def test_the_training_split_is_tuned_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    original = ToyTask.calibration

    def counted(self: ToyTask, count: int) -> Any:
        seen.append(count)
        return original(self, count)

    monkeypatch.setattr(ToyTask, "calibration", counted)
    run_experiment(tuned(tmp_path))
    assert seen == [6]


def test_a_second_run_only_reads(
    finished: tuple[Path, ExperimentResult], no_tune: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, first = finished
    monkeypatch.setattr(ToyModel, "load", lambda self: pytest.fail("the model was loaded"))
    assert run_experiment(tuned(folder)).choices == first.choices


@pytest.mark.slow
def test_a_run_that_goes_on_keeps_the_method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The choice decides, not a new tune: it stands in choices.json, and the rows belong to it."""
    run_experiment(tuned(tmp_path), part=Part(limit=5))
    before = choices(tmp_path)

    def fail(*args: Any) -> TuneResult:
        raise NoTuneError

    monkeypatch.setattr("tokenprune.experiment.choosing.run_tune", fail)
    run_experiment(tuned(tmp_path))
    assert choices(tmp_path) == before


def test_other_settings_of_the_tune_are_another_definition(finished: tuple[Path, ExperimentResult]) -> None:
    folder, _ = finished
    with pytest.raises(OutputError, match=f"holds results of '{KEY}' with another definition"):
        run_experiment(tuned(folder, tune={"seed": 1}))


@pytest.mark.slow
def test_each_budget_has_its_tune(tmp_path: Path) -> None:
    budgets = [HALF, {"name": "flops_reduction", "percent": 20}]
    result = run_experiment(tuned(tmp_path, budgets), part=Part(only=("tuned",), limit=2))
    assert set(result.choices) == {KEY, "tuned / flops_reduction 20 model"}
    assert {path.name for path in (tmp_path / "tuned").iterdir()} == {"layer_average-0.6", "flops_reduction-20-model"}


@pytest.mark.slow
def test_a_label_has_a_folder_of_its_own(tmp_path: Path) -> None:
    methods = [{"name": "tuned", "tune": TUNE}, {"name": "tuned", "label": "by /agreement", "tune": TUNE}]
    run_experiment(tuned(tmp_path, methods=methods), part=Part(limit=1))
    (folder,) = (tmp_path / "tuned").glob("by-agreement-*")
    assert (folder / "layer_average-0.6" / "tuned.yaml").is_file()
    assert (
        choices(tmp_path)["by /agreement / layer_average 0.6"]["tuned"]["method"]
        == (choices(tmp_path)[KEY]["tuned"]["method"])
    )


def test_no_two_labels_share_a_folder(tmp_path: Path) -> None:
    """Nor does one lead out of the folder of the tunes."""
    tune = Tune(settings=TuneSettings(), budget=HALF)  # type: ignore[arg-type]
    labels = ["a b", "a/b", "a-b", "a.b", ".", "..", "...", "/", "-", "plain", "tuned"]
    folders = [tune.folder(tmp_path, label).resolve() for label in labels]
    assert len(set(folders)) == len(labels)
    assert all(folder.is_relative_to(tmp_path / "tuned") for folder in folders)
    assert tune.folder(tmp_path, "plain") == tmp_path / "tuned" / "plain" / "layer_average-0.6"


def test_only_another_method_does_not_tune(tmp_path: Path, no_tune: None) -> None:
    result = run_experiment(tuned(tmp_path), part=Part(only=("fastv",), limit=2))
    assert set(result.choices) == {"fastv / layer_average 0.6"}


def test_a_dry_run_does_not_tune_and_says_so(tmp_path: Path, no_tune: None, capsys: pytest.CaptureFixture[str]) -> None:
    plan = plan_experiment(tuned(tmp_path / "x"))
    print_plan(plan)
    assert f"{KEY}: a tune on 6 samples chooses it first, with at most" in capsys.readouterr().out
    assert [(key, samples) for key, (samples, _) in plan.tunes.items()] == [(KEY, 6)]
    assert plan.tunes[KEY][1] > 0
    assert [item.layers for item in plan.series if item.key == KEY] == [()]
    assert not (tmp_path / "x").exists()


def test_a_dry_run_after_the_tune_knows_the_layers(finished: tuple[Path, ExperimentResult], no_tune: None) -> None:
    folder, result = finished
    plan = plan_experiment(tuned(folder))
    assert not plan.tunes
    assert [list(item.layers) for item in plan.series if item.key == KEY] == [result.choices[KEY]["layers"]]


@pytest.mark.slow
def test_killed_while_it_tunes_it_goes_on(finished: tuple[Path, ExperimentResult], tmp_path: Path) -> None:
    with started(run_tuned, tmp_path) as job:
        steps = [name for name, _, _ in (job.step() for _ in range(3))]
    assert all(step.startswith("tune: ") for step in steps), steps
    measured = tmp_path / "tuned" / "layer_average-0.6" / "samples.jsonl"
    rows = measured.read_text().splitlines()
    assert rows
    assert not (tmp_path / "config.yaml").exists()
    result = run_experiment(tuned(tmp_path))
    assert measured.read_text().splitlines()[: len(rows) - 1] == rows[:-1]  # the last one may have been torn
    folder, whole = finished
    assert result.choices == whole.choices
    assert canonical(tmp_path) == canonical(folder)


def run_tuned(folder: Path, progress: Any) -> None:
    """The experiment in a process that is killed."""
    run_experiment(tuned(folder), progress)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"methods": [{"name": "fastv", "tune": {}}]}, "'tune' is for the method 'tuned'"),
        ({"methods": [{"name": "tuned", "layers": {"name": "fixed", "layers": [1]}}]}, "whole: remove layers"),
        ({"methods": [{"name": "tuned", "published": True, "seeds": [1]}]}, "whole: remove published, seeds"),
        ({"methods": [{"name": "tuned", "pruner": {"name": "topk", "scorer": "random"}}]}, "whole: remove pruner"),
        ({"methods": [{"name": "tuned", "positions": "renumbered"}]}, "whole: remove positions"),
        ({"methods": ["tuned", "tuned"]}, "methods tuned appear twice"),
        ({"methods": [{"name": "tuned", "tune": {"sample": 3}}]}, "tune.sample: unknown key"),
        ({"methods": [{"name": "tuned", "tune": {"samples": 1}}]}, "tune.samples: Input should be greater"),
        ({"methods": [{"name": "tuned", "tune": {"methods": ["fastw"]}}]}, "unknown method 'fastw'"),
        (
            {"methods": ["tuned"], "budgets": [HALF, {"name": "keep_ratio", "ratio": 0.5}]},
            "with the budget 'keep_ratio 0.5' they differ: use layer_average or flops_reduction",
        ),
    ],
)
def test_refused(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        tuned(tmp_path, **changes)
    assert "\n" not in str(caught.value)


def test_a_tune_that_cannot_run_names_the_method(tmp_path: Path) -> None:
    """Other methods have been tried out by then, so that nobody waits for a tune to be told about them."""
    broken = tuned(tmp_path / "a", [{"name": "layer_average", "tokens": 100}])
    with pytest.raises(TokenPruneError, match=r"^method '(fastv|tuned)' with budget 'layer_average 100': .*16"):
        run_experiment(broken)
    late = {"name": "fastv", "label": "late", "layers": {"name": "fixed", "layers": [9]}}
    with pytest.raises(TokenPruneError, match=r"^method 'late'"):
        run_experiment(tuned(tmp_path / "b", methods=[{"name": "tuned", "tune": TUNE}, late]))
    assert not (tmp_path / "b").exists()
    only = tuned(tmp_path / "c", [{"name": "layer_average", "tokens": 100}], methods=[{"name": "tuned", "tune": TUNE}])
    with pytest.raises(TokenPruneError, match=r"^method 'tuned' with budget 'layer_average 100': .*16"):
        run_experiment(only)


@pytest.mark.usefixtures("toy_installed")
def test_the_resolved_config_reads_back(tmp_path: Path) -> None:
    first = ExperimentConfig.from_dict(
        {"model": "toy", "task": "toy", "methods": [{"name": "tuned", "tune": TUNE}], "budgets": [HALF], "output": "x"}
    )
    (tmp_path / "c.yaml").write_text(first.to_yaml())
    assert ExperimentConfig.from_yaml(tmp_path / "c.yaml") == first


def test_a_method_of_a_plugin_with_the_same_name_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tokenprune.experiment.config.method_names", lambda: ["fastv", "tuned"])
    with pytest.raises(ConfigError, match="'tuned' has a meaning of its own, and an installed plugin ships"):
        tuned(tmp_path)


@pytest.mark.slow
def test_a_tune_that_was_stopped_keeps_its_batch_size(tmp_path: Path) -> None:
    """Its rows are numbered by batch."""

    def stop(name: str, done: int, total: int) -> None:
        if name.startswith("tune") and done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_experiment(tuned(tmp_path, batch_size=3), stop)
    result = run_experiment(tuned(tmp_path, batch_size=2))
    assert len(result.rows) == 3 * 24
    (stored,) = tmp_path.glob("tuned/**/config.yaml")
    assert "batch_size: 3\n" in stored.read_text()
