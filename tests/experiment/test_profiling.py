"""The profile of an experiment's model: both rules, and a verdict per method and budget that is used afterwards."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import tokenprune as tp
from tests.support.toy import ToyModel, config
from tokenprune import cli
from tokenprune.engine.trials import calibrate
from tokenprune.errors import ConfigError
from tokenprune.experiment import run_experiment
from tokenprune.experiment.profiling import profile_model
from tokenprune.experiment.results import Results
from tokenprune.run import apply
from tokenprune.selectors.entropy_profile import EntropyProfile
from tokenprune.selectors.way import pruner_data

pytestmark = pytest.mark.usefixtures("toy_installed")

BUDGETS = [{"name": "keep_count", "tokens": 3}, {"name": "keep_count", "tokens": 5}]
KEYS = ["entropyprune / keep_count 3", "entropyprune / keep_count 5"]


def toy(output: Path, **changes: Any) -> tp.ExperimentConfig:
    return config(str(output), methods=["random", "entropyprune"], budgets=BUDGETS, calibration=6, **changes)


def test_every_method_that_verifies_is_verified_once_per_budget(tmp_path: Path) -> None:
    measured = profile_model(toy(tmp_path))
    assert len(measured.profile.curves) == 6
    assert list(measured.choices) == list(measured.verdicts) == KEYS
    assert [verdict.definition["budget"]["tokens"] for verdict in measured.profile.verdicts] == [3, 5]
    for key in KEYS:
        assert measured.choices[key].layers == measured.verdicts[key].layers
        found = measured.verdicts[key].candidates
        assert len([row for row in found if row.layers[0] > 0]) == 3 * 4  # layers 1 to 3 of four, four kinds of states
        assert len([row for row in found if row.layers == (0,)]) == 3 * 2  # three ways, two layers of the tower


def test_the_file_is_used_without_calibration_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = profile_model(toy(tmp_path))
    measured.profile.save(tmp_path / "profile.json")
    method = tp.load_method("entropyprune", keep_tokens=3)
    layers = method.layers.model_copy(update={"profile_file": str(tmp_path / "profile.json")})
    with apply(ToyModel().load().model, method.model_copy(update={"layers": layers})) as run:
        assert run.choice.layers == measured.choices[KEYS[0]].layers
        assert run.choice.pruner == measured.choices[KEYS[0]].pruner
        assert "(verdict in " in run.choice.reason
    entry = {"name": "entropyprune", "layers": {"name": "entropy_collapse", **layers.model_dump(mode="json")}}
    monkeypatch.setattr(calibrate, "run_race", lambda *_: pytest.fail("it verified again"))
    result = run_experiment(toy(tmp_path / "out").model_copy(update={"methods": methods(entry), "calibration": 0}))
    for key in KEYS:
        assert tuple(result.choices[key]["layers"]) == measured.choices[key].layers
        assert "(verdict in " in result.choices[key]["reason"]


def methods(*entries: dict[str, Any]) -> Any:
    return config("x", methods=list(entries)).methods


def test_an_experiment_verifies_and_stores_what_it_chose(tmp_path: Path) -> None:
    experiment = toy(tmp_path / "out", oracle=False)
    result = run_experiment(experiment)
    measured = profile_model(experiment)
    stored = Results(tmp_path / "out").read_json("choices.json")
    for key in KEYS:
        choice = measured.choices[key]
        assert stored[key]["layers"] == result.choices[key]["layers"] == list(choice.layers)
        assert stored[key]["reason"] == choice.reason
        assert choice.pruner is not None
        assert stored[key]["pruner"] == pruner_data(choice.pruner)
        assert choice.promise is not None
        assert stored[key]["promise"] == choice.promise.model_dump()


def test_the_profile_file_of_a_selector_is_not_read_when_it_is_made(tmp_path: Path) -> None:
    """The file may be the one that is to be written."""
    layers = {"name": "entropy_collapse", "profile_file": "none.json", "verify": True}
    entry = {"name": "entropyprune", "layers": layers}
    measured = profile_model(toy(tmp_path).model_copy(update={"methods": methods(entry)}))
    assert list(measured.verdicts) == KEYS


def test_without_calibration_pictures_there_is_no_profile(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no calibration pictures; set calibration to 1 or more"):
        profile_model(toy(tmp_path).model_copy(update={"calibration": 0}))


def test_the_command_prints_rules_and_candidates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = {
        "model": {"name": "toy"},
        "task": {"name": "toy"},
        "methods": ["entropyprune", "random"],
        "budgets": BUDGETS[:1],
        "output": str(tmp_path / "results"),
        "calibration": 4,
    }
    (tmp_path / "e.yaml").write_text(yaml.safe_dump(data))
    arguments = ["tokenprune", "profile", str(tmp_path / "e.yaml"), "--output", str(tmp_path / "p.json")]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert not stop.value.code
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith(("collapse before layer", "no collapse found:")) for line in lines)
    assert any(line.startswith(("sharpest relative drop on", "the entropy never falls")) for line in lines)
    points = [line[:8].rstrip() for line in lines if re.match(r"(tower|layer) \d+ ", line)]
    stored = EntropyProfile.load(tmp_path / "p.json")
    assert points == list(stored.path)
    assert any(line.startswith(("low plateau from layer", "no plateau found:")) for line in lines)
    assert any(line.startswith(f"{KEYS[0]}: verified without labels: layer ") for line in lines)
    (head,) = [number for number, line in enumerate(lines) if line.startswith("before layer ")]
    sources = ("query", "key", "value", "hidden")
    assert " ".join(lines[head].split()) == " ".join(["before layer", *(f"source {name}" for name in sources)])
    rows = [line.split() for line in lines[head + 1 : head + 4]]
    assert [row[0] for row in rows] == ["1", "2", "3"]
    (verdict,) = EntropyProfile.load(tmp_path / "p.json").verdicts
    best = next(item for item in verdict.candidates if (item.layers, item.setting) == (verdict.layers, verdict.setting))
    agreement = f"* {100 * (best.agreement or 0):.1f}"
    assert sum("* " in line for line in lines) == 2  # the chosen one, and what the star means
    assert any(agreement in line and line.startswith((verdict.setting, str(verdict.layers[0]))) for line in lines)
    assert any(line.startswith("share and diversity, tower layer -1") for line in lines)
