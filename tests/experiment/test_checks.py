"""What is wrong is found before hours go by: before the first calibration or answer, and without a trace."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import Field

from tests.support.toy import ToyModel, completed, config
from tokenprune.errors import ConfigError, LayerError
from tokenprune.experiment import choosing, markdown, run_experiment
from tokenprune.experiment.dry_run import plan_experiment
from tokenprune.experiment.folder import read_result
from tokenprune.models.base import LoadedModel

FEW: dict[str, Any] = {
    "methods": ["norm-hidden-large"],
    "oracle": False,
    "budgets": [{"name": "keep_count", "tokens": 2}],
}
MEASURED = {"name": "vtw", "layers": {"name": "vtw", "start": 1, "threshold": 1e9}}


def listing(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def calibrations(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How often samples were calibrated with."""
    found: list[int] = []
    calibrate = choosing.calibration
    monkeypatch.setattr(choosing, "calibration", lambda *rest: (found.append(1), calibrate(*rest))[1])
    return found


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ({"name": "fixed", "layers": [99]}, "layer 99 is out of range: the model has 4"),
        ({"name": "relative", "depths": [0.1, 0.11]}, r"depths \[0\.1, 0\.11\] of 4 layers are layers \[1, 1\]"),
        ({"name": "vtw", "start": 9}, "vtw: start layer 9 is out of range"),
        ({"name": "entropy_collapse", "fallback": 4}, "fallback layer 4 is out of range"),
    ],
)
@pytest.mark.parametrize("run", [run_experiment, plan_experiment])
def test_layers_are_checked_before_another_method_calibrates(
    tmp_path: Path, calibrations: list[int], layers: dict[str, Any], words: str, run: Any
) -> None:
    wrong = {"name": "random", "label": "wrong", "layers": layers}
    with pytest.raises(LayerError, match=rf"method 'wrong' with budget 'keep_ratio 0\.5': {words}"):
        run(config(str(tmp_path / "a" / "out"), methods=[MEASURED, wrong], calibration=2))
    assert not calibrations
    assert not list(tmp_path.iterdir())  # nor the folders above


def test_all_methods_that_cannot_run_are_named_at_once(tmp_path: Path) -> None:
    wrong = [{"name": "random", "label": name, "layers": {"name": "fixed", "layers": [9]}} for name in "abc"]
    with pytest.raises(LayerError, match=r"method 'a' .* use 0 to 3; also failed: b, c"):
        run_experiment(config(str(tmp_path / "out"), methods=wrong))


def test_a_method_that_fails_when_it_runs_is_found_before_another_calibrates(
    tmp_path: Path, calibrations: list[int]
) -> None:
    with pytest.raises(Exception, match="method 'evs' with budget"):
        run_experiment(config(str(tmp_path / "out"), methods=[MEASURED, "evs"], calibration=2))
    assert not calibrations


@pytest.mark.slow
def test_layers_that_are_stated_need_no_calibration(tmp_path: Path, calibrations: list[int]) -> None:
    run_experiment(config(str(tmp_path), **FEW, calibration=2))
    assert not calibrations


def test_a_run_that_is_refused_changes_nothing_in_a_folder(tmp_path: Path) -> None:
    """Not even what a kill left in it."""
    completed(tmp_path, **FEW)
    with (tmp_path / "samples.jsonl").open("a") as file:
        file.write('{"series": "unpruned", "pos')
    with (tmp_path / "skipped.jsonl").open("w") as file:
        file.write('{"position": 3, "error": "repaired since", "readable": false}\n')
    before = listing(tmp_path)
    wrong = {"name": "random", "layers": {"name": "fixed", "layers": [9]}}
    with pytest.raises(LayerError):
        run_experiment(config(str(tmp_path), **{**FEW, "methods": [*FEW["methods"], wrong]}))
    assert listing(tmp_path) == before


def test_a_folder_of_somebody_else_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    wrong = {"name": "random", "layers": {"name": "fixed", "layers": [9]}}
    with pytest.raises(LayerError):
        run_experiment(config(str(tmp_path), methods=[wrong]))
    assert listing(tmp_path) == {"notes.txt": b"mine"}


# ---- settings of generate ----


class Own(ToyModel):
    """The toy model with settings of its checkpoint, and of the user.

    Attributes:
        own: The checkpoint's.
        user: The user's.
    """

    own: dict[str, Any] = Field(default_factory=dict)
    user: dict[str, Any] = Field(default_factory=dict)

    def load(self) -> LoadedModel:
        loaded = super().load()
        for name, value in self.own.items():
            setattr(loaded.model.generation_config, name, value)
        loaded.generation = self.user
        return loaded


STRONG: dict[str, Any] = {"repetition_penalty": 50.0, "no_repeat_ngram_size": 1, "num_beams": 3}


@pytest.mark.slow
def test_answers_are_greedy_whatever_the_checkpoint_says(tmp_path: Path) -> None:
    long = {**FEW, "max_new_tokens": 4}
    greedy = run_experiment(config(str(tmp_path / "greedy"), **long))
    own = run_experiment(
        config(str(tmp_path / "own"), **long, model=Own(own=STRONG | {"cache_implementation": "static"}))
    )
    assert own.rows == greedy.rows
    text = markdown(own)
    assert (
        "Answers do not use the checkpoint's own `num_beams: 3`, `repetition_penalty: 50.0`, `no_repeat_ngram_size: 1`,"
        " `cache_implementation: static`; `generation` of the model would." in text
    )
    assert markdown(read_result(tmp_path / "own")) == text
    assert "do not use" not in markdown(greedy)
    asked = run_experiment(config(str(tmp_path / "asked"), **long, model=Own(own=STRONG, user=STRONG)))
    assert asked.rows != greedy.rows
    assert "do not use" not in markdown(asked)


@pytest.mark.parametrize("user", [{"cache_implementation": "quantized"}, {"prompt_lookup_num_tokens": 3}])
def test_settings_that_pruning_cannot_follow_are_refused_at_once(
    tmp_path: Path, calibrations: list[int], user: dict[str, Any]
) -> None:
    ((name, value),) = user.items()
    with pytest.raises(
        ConfigError, match=f"generation: {name}: {value!r} cannot be used while tokens are pruned; remove"
    ):
        run_experiment(config(str(tmp_path / "out"), methods=[MEASURED], calibration=2, model=Own(user=user)))
    assert not calibrations


@pytest.mark.slow
def test_divergence_is_greedy_too(tmp_path: Path) -> None:
    more = {**FEW, "divergence": True}
    greedy = run_experiment(config(str(tmp_path / "greedy"), **more))
    own = run_experiment(config(str(tmp_path / "own"), **more, model=Own(own=STRONG | {"guidance_scale": 2.0})))
    assert own.rows == greedy.rows
