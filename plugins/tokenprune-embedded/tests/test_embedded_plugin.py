"""The models and tasks are found like those of any other plugin, and the repository's examples run on them."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

import pytest

import tokenprune as tp
from tokenprune import cli
from tokenprune.authoring import UnknownNameError, builtin_only, registry

DISTRIBUTION = Path(__file__).parents[1]
FILES = sorted((DISTRIBUTION.parents[1] / "examples").glob("*.yaml"))
TUNES = [path for path in FILES if path.name.startswith("tune-")]  # tests/tuning/test_cli.py runs them
EXAMPLES = [path for path in FILES if path not in TUNES]
DEMO = DISTRIBUTION.parents[1] / "examples" / "demo.yaml"  # the test of the command line runs it
PROJECT = tomllib.loads((DISTRIBUTION / "pyproject.toml").read_text(encoding="utf-8"))["project"]
REGISTERED = [
    (group.removeprefix("tokenprune."), name) for group, names in PROJECT["entry-points"].items() for name in names
]


@pytest.mark.parametrize(("kind", "name"), REGISTERED)
def test_every_name_is_found(kind: str, name: str) -> None:
    components = registry(kind)
    assert [entry.distribution for entry in components.entries(name)] == ["tokenprune-embedded"]
    assert components.name_of(components.get(name)) == name
    with builtin_only(), pytest.raises(UnknownNameError, match=name):
        registry(kind).get(name)


def test_there_are_examples() -> None:
    assert DEMO in EXAMPLES


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_the_examples_are_valid_and_say_what_they_need(path: Path) -> None:
    config = tp.ExperimentConfig.from_yaml(path)
    assert list(config.series())
    used = {("models", type(config.model)), ("tasks", type(config.task))}
    if {(kind, registry(kind).name_of(component)) for kind, component in used} & set(REGISTERED):
        assert list(config.requires) == ["tokenprune-embedded"]


@pytest.mark.slow
@pytest.mark.parametrize("path", [path for path in EXAMPLES if path != DEMO], ids=lambda path: path.name)
def test_the_examples_run(path: Path, tmp_path: Path) -> None:
    """All methods, cut short as by ``--limit 2``, with the last budget, in float32, which any CPU computes fast."""
    config = tp.ExperimentConfig.from_yaml(path)
    short = config.model_copy(
        update={
            "model": config.model.model_copy(update={"dtype": "float32"}),
            "budgets": config.budgets[-1:],
            "batch_size": 2,
            "calibration": 1,
            "timing": 0,
            "output": str(tmp_path),
        }
    )
    rows = tp.run_experiment(short, part=tp.Part(limit=2)).rows
    assert len(rows) == 2 * len(list(short.series()))


@pytest.mark.slow
def test_the_demo_runs_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a user types it, with ``--limit``; the layers are looked for on one picture, and one round is timed."""
    short = tmp_path / "demo.yaml"
    demo = DEMO.read_text(encoding="utf-8")
    short.write_text(demo.replace("timing: 2", "timing: 1\ncalibration: 1"), encoding="utf-8")
    output = tmp_path / "results"
    monkeypatch.setattr(sys, "argv", ["tokenprune", "run", str(short), "--limit", "2", "--output", str(output)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert not stop.value.code
    assert "same answer %" in capsys.readouterr().out
    assert "2 questions" in (output / "report.md").read_text(encoding="utf-8")
    rows = (output / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(rows) == 2 * len(list(tp.ExperimentConfig.from_yaml(short).series()))


def test_the_config_is_read_without_the_weights() -> None:
    """``tokenprune flops --model digits`` needs nothing else."""
    spec = registry("models").get("digits")()
    assert spec.read_config().model_type == "llava"
