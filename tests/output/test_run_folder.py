"""One class decides whether a run may go on in a folder, for experiments and for tunes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tokenprune.errors import OutputError
from tokenprune.experiment.config import ExperimentConfig
from tokenprune.fingerprint.origin import Origin
from tokenprune.output.folder import CONFIG, OutputFolder
from tokenprune.output.run_folder import RunFolder
from tokenprune.tuning import TuneConfig
from tokenprune.tuning.run_config import RunConfig

SETTINGS: dict[str, Any] = {"model": {"name": "toy", "depth": 3}, "batch_size": 4, "output": "here"}
ORIGIN = Origin("2-a", {"task": "1"})


class Named(RunFolder):
    definitions = "names.json"


@pytest.fixture
def claimed(tmp_path: Path) -> Named:
    folder = Named(tmp_path)
    folder.claim(SETTINGS, ORIGIN, {"a": {"layer": 1}})
    return folder


@pytest.mark.parametrize(
    ("config", "fixed"),
    [
        (ExperimentConfig, "model task max_new_tokens calibration timing divergence"),
        (TuneConfig, "model task samples tokens seed labels max_new_tokens batch_size"),
    ],
)
def test_every_setting_is_decided(config: type[RunConfig], fixed: str) -> None:
    """A new field is named here, or marked ``MayDiffer``."""
    assert {*config.model_fields} - config.free() == set(fixed.split())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"batch_size": 8}, r"\(batch_size: 4 there, 8 now\)"),
        ({"model": {"name": "toy", "depth": 4}}, r"\(model.depth: 3 there, 4 now\)"),
        ({"model": "toy"}, r"\(model: \{.*\} there, 'toy' now\)"),
        ({"strict": True}, r"\(strict: None there, True now\)"),
    ],
)
def test_other_settings_are_refused(claimed: Named, change: dict[str, Any], words: str) -> None:
    with pytest.raises(OutputError, match=f"holds results with other settings {words}; choose another output folder"):
        claimed.check_settings(SETTINGS | change, {"output"})


def test_free_settings_may_differ(claimed: Named) -> None:
    claimed.check_settings({**SETTINGS, "output": "there"}, {"output"})
    claimed.check_settings({name: SETTINGS[name] for name in reversed(SETTINGS)}, {"output"})


@pytest.mark.parametrize("text", ["", "a: [", "- a", "when: 2020-99-99"])
def test_damaged_settings_are_refused_and_read_as_none(claimed: Named, text: str) -> None:
    (claimed.folder / CONFIG).write_text(text)
    assert OutputFolder(claimed.folder).config() == {}
    with pytest.raises(OutputError, match=r"config.yaml is damaged, so it is unknown"):
        claimed.check_settings(SETTINGS, ())


def test_a_name_stands_for_one_thing(claimed: Named) -> None:
    claimed.check_definitions({"a": {"layer": 1}, "b": {"layer": 2}})
    with pytest.raises(OutputError, match="holds results of 'a' with another definition; give it another label"):
        claimed.check_definitions({"a": {"layer": 2}})
    claimed.add_definitions({"b": {"layer": 2}})
    assert claimed.read_json("names.json") == {"a": {"layer": 1}, "b": {"layer": 2}}


def test_an_origin_is_written_once(claimed: Named) -> None:
    with pytest.raises(OutputError, match="another model"):
        claimed.check_origin(Origin("2-b", {"task": "1"}))
    with pytest.raises(OutputError, match="another version of the task"):
        claimed.check_code({"task": "2"})
    claimed.claim(SETTINGS, Origin("2-b", {"task": "1"}), {})
    claimed.check_origin(ORIGIN)


def test_a_new_folder_takes_everything(tmp_path: Path) -> None:
    folder = Named(tmp_path)
    assert not folder.claimed
    folder.check_settings(SETTINGS, ())
    folder.check_origin(ORIGIN)
    folder.check_code({"task": "2"})
    assert folder.check_definitions({"a": {"layer": 1}}) == {}
