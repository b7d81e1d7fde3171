"""``tokenprune doctor``: what is broken ends with exit code 1, what is missing says how to get it."""

from __future__ import annotations

import json
from importlib import metadata

import pytest
from packaging.requirements import Requirement

from tests.core.test_plugins import Fake, fake
from tests.experiment.test_cli import call
from tokenprune.cli import doctor

__all__ = ["fake"]


def rows(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], code: int) -> list[dict[str, str]]:
    assert call(monkeypatch, "doctor", "--json") == code
    found: list[dict[str, str]] = json.loads(capsys.readouterr().out)
    return found


def test_an_installation_that_works(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    found = rows(monkeypatch, capsys, 0)
    assert not [row for row in found if row["state"] == "broken"]
    versions = {row["name"]: row["found"] for row in found if row["part"] == "versions"}
    assert versions["transformers"] == metadata.version("transformers")
    assert {row["part"] for row in found} >= {"devices", "attention", "extra report", "components"}
    assert "extra test" not in {row["part"] for row in found}


def test_a_broken_component_is_named(
    fake: Fake, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.add("unfinished", "fake_plugin:Unfinished", "half-dist")
    monkeypatch.setattr(doctor, "_versions", lambda: ())
    monkeypatch.setattr(doctor, "_extras", lambda: ())
    (broken,) = [row for row in rows(monkeypatch, capsys, 1) if row["state"] == "broken"]
    assert broken["name"] == "scorers unfinished"
    assert "lacks score" in broken["found"]


@pytest.mark.parametrize(
    ("requirement", "state", "found"),
    [
        ("no-such-distribution>=1", "missing", "not installed"),
        ("pytest>=1", "ok", metadata.version("pytest")),
        ("pytest<1", "broken", f"{metadata.version('pytest')}, needs <1"),
    ],
)
def test_what_an_extra_needs(requirement: str, state: str, found: str) -> None:
    row = doctor._installed("extra x", Requirement(requirement), "missing", "pip install x")
    assert (row.state, row.found) == (state, found)
    assert row.fix == ("" if state == "ok" else "pip install x")


def test_it_prints_a_verdict(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for part in ("_versions", "_extras", "_components", "_devices", "_kernels"):
        monkeypatch.setattr(doctor, part, lambda: ())
    assert call(monkeypatch, "doctor") == 0
    assert capsys.readouterr().out.endswith("Nothing is broken. What is missing is optional.\n")
