"""Tiny checkpoints in folders, for all tests here."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.checkpoints import FAMILIES, usable


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folder of every family whose processor can be made here."""
    return {name: FAMILIES[name].save(tmp_path_factory.mktemp("checkpoints") / name) for name in usable()}
