"""The families whose processors need torchvision, in a process that has it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.slow
@pytest.mark.long
def test_the_families_that_need_torchvision() -> None:
    """It fails, with the line that says what to run, where torchvision is missing."""
    code = "import tests.support.torchvision_stub, pytest; raise SystemExit(pytest.main())"
    files = [str(HERE / name) for name in ("test_checkpoints.py", "torchvision_only.py")]
    command = [sys.executable, "-c", code, "--tb=short", "-rs", "-p", "no:cacheprovider", "-p", "no:xdist", *files]
    done = subprocess.run(command, cwd=HERE.parents[1], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "SKIPPED" not in done.stdout


@pytest.mark.slow
def test_a_missing_torchvision_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENPRUNE_TORCHVISION", str(tmp_path))
    command = [sys.executable, "-c", "import tests.support.torchvision_stub"]
    done = subprocess.run(command, cwd=HERE.parents[1], capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1].endswith("run `make test`, or set TOKENPRUNE_TORCHVISION to its folder")
