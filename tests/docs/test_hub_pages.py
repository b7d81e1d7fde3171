"""The page whose scripts load LLaVA-1.5 and Qwen2.5-VL runs as it stands, in a process that has torchvision."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_five_minutes_run_as_pasted(tmp_path: Path) -> None:
    page = ROOT / "docs" / "five-minutes.md"
    code = "import sys, tests.support.torchvision_stub; from tests.docs.hub_pages import main; main(*sys.argv[1:])"
    command = [sys.executable, "-c", code, str(page), str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == f"{page.read_text(encoding='utf-8').count('with tp.apply(')} runs"
