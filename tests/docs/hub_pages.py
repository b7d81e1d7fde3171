"""Runs pages that load checkpoints of the hub, with tiny ones in their place; `test_hub_pages.py` starts it.

    python -c "import tests.support.torchvision_stub; from tests.docs.hub_pages import main; main(PAGE, FOLDER)"

A process of its own: the processors of Qwen-VL need torchvision, and its presence changes those of all tests.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from tests.docs.test_docs import blocks
from tests.support.checkpoints import FAMILIES

#: Name on the hub -> family of the tiny checkpoint that stands for it.
CHECKPOINTS = {"llava-hf/llava-1.5-7b-hf": "llava", "Qwen/Qwen2.5-VL-7B-Instruct": "qwen2.5-vl"}
PHOTOS = 6


def prepare(folder: Path) -> None:
    """Write the checkpoints, `photo.jpg` and `photos/` into a folder."""
    for family in CHECKPOINTS.values():
        FAMILIES[family].save(folder / family)
    (folder / "photos").mkdir()
    noise = torch.Generator().manual_seed(0)
    for path in (folder / "photo.jpg", *(folder / "photos" / f"{number}.jpg" for number in range(PHOTOS))):
        pixels = torch.randint(0, 256, (48, 64, 3), generator=noise, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(path)


def main(page: str, folder: str) -> None:
    """Run the Python blocks of a page in one empty namespace, with a folder as the working directory.

    After every block the run in it, if there is one, has dropped tokens of every sample.
    """
    prepare(Path(folder))
    os.chdir(folder)
    namespace: dict[str, Any] = {"__name__": "example"}
    replaced, runs = set(), []
    for block in blocks(Path(page), "python"):
        assert block.runs, f"{block}: the page promises that its lines run"
        code = block.code
        for online, family in CHECKPOINTS.items():
            if online in code:
                replaced.add(online)
                code = code.replace(online, family)
        assert "://" not in code
        exec(compile("\n" * block.line + code, str(block.page), "exec"), namespace)
        if "tp.apply(" in code:
            report = namespace["run"].report
            assert all(after < before for before, after in zip(report.before, report.after, strict=True)), report
            runs.append(namespace["run"])
    assert replaced == set(CHECKPOINTS)
    assert "no calibration samples were given" in runs[0].choice.reason
    assert "agrees with the unpruned model" in runs[1].choice.reason
    print(f"{len(runs)} runs")
