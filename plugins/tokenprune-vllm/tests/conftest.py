"""The environment of all tests: offline, one process per engine, little memory."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # else the engines of two test processes would share a core
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
}
os.environ.update(ENVIRONMENT)
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> object:
    """``checkpoint(family)``: the folder of a family's checkpoint, made when it is first asked for."""
    from checkpoints import save

    folder, made = tmp_path_factory.mktemp("checkpoints"), {}

    def find(family: str) -> Path:
        if family not in made:
            made[family] = save(family, folder)
        return made[family]

    return find
