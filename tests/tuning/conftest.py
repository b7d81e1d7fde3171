"""Tunes in tests name the toy model and task, and a scorer of a plugin, as others name theirs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.toy_distribution import METADATA, toy_installed
from tokenprune.core import plugins

__all__ = ["toy_installed"]


@pytest.fixture
def place_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The scorer ``place`` as an installed distribution."""
    info = tmp_path / "site" / "tokenprune_place-0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(METADATA.replace("toy", "place"))
    (info / "entry_points.txt").write_text("[tokenprune.scorers]\nplace = tests.tuning.planted:Place\n")
    monkeypatch.syspath_prepend(tmp_path / "site")
    plugins.refresh()
    yield
    monkeypatch.undo()
    plugins.refresh()
