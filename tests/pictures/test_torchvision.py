"""Where the tokens are of the families whose processors need torchvision, in a process that has it."""

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
    command = [sys.executable, "-c", code, "--tb=short", "-rs", "-p", "no:cacheprovider", "-p", "no:xdist"]
    done = subprocess.run(
        [*command, str(HERE / "test_placement.py"), str(HERE / "torchvision_only.py")],
        cwd=HERE.parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "SKIPPED" not in done.stdout
