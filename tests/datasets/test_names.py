"""What is no file and no folder: a mistyped path, or a dataset of the hub, which is asked once."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.support.hub import hub, silent_hub
from tokenprune.datasets.open import open_table
from tokenprune.errors import MissingDataError


@pytest.mark.parametrize("data", ["nope/", "./nope", "../nope", "~/nope", "/nope", "a/b/c", "nope.jsonl", "a//b"])
def test_a_path_is_not_looked_for_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: str) -> None:
    """The package that reads datasets of the hub is not even asked for."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingDataError, match=f"^data: there is no file or folder '{data}'; use a file"):
        open_table(data)


def test_a_name_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "datasets", None)
    message = "no file or folder 'owner/nope', and a Hugging Face dataset needs the package 'datasets' .*; pip install"
    with pytest.raises(MissingDataError, match=message):
        open_table("owner/nope")


def test_the_hub_is_asked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets")
    monkeypatch.chdir(tmp_path)
    with hub(monkeypatch) as asked, pytest.raises(MissingDataError, match="'owner/nope', and the hub has no dataset"):
        open_table("owner/nope")
    assert asked == ["/api/datasets/owner/nope"]
    monkeypatch.setattr("tokenprune.core.hub.TIMEOUT", 0.1)
    with silent_hub(monkeypatch) as asked, pytest.raises(MissingDataError, match=r"no dataset of that name .*did not"):
        open_table("owner/nope")
    assert asked == ["/api/datasets/owner/nope"]
