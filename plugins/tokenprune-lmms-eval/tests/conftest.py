"""The environment of all tests: offline, with torchvision for processors, and every cache in a folder of the tests."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_CACHE=tempfile.mkdtemp(), TOKENIZERS_PARALLELISM="false")
sys.path[:0] = [str(HERE), str(ROOT)]

from local_tasks import LocalTasks  # noqa: E402

import tests.support.torchvision_stub  # noqa: E402, F401  before transformers
from tests.support.checkpoints import FAMILIES  # noqa: E402


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """``checkpoint(family)``: the folder of a family's tiny checkpoint, made when it is first asked for."""
    folder = tmp_path_factory.mktemp("checkpoints")

    def find(family: str) -> Path:
        if not (folder / family).exists():
            FAMILIES[family].save(folder / family)
        return folder / family

    return find


@pytest.fixture
def tasks(tmp_path: Path) -> LocalTasks:
    """Tasks in a folder of their own."""
    return LocalTasks(tmp_path / "tasks")
