"""The page `Evaluate with lmms-eval`: its commands run with a small checkpoint, and its table has every argument."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path

from evaluation import evaluate
from local_tasks import ROOT, LocalTasks

from tokenprune_lmms_eval import private
from tokenprune_lmms_eval.settings import Settings

PAGES = [ROOT / "docs" / "lmms-eval.md", ROOT / "plugins" / "tokenprune-lmms-eval" / "README.md"]
CHECKPOINT = "llava-hf/llava-1.5-7b-hf"


def test_every_argument_is_in_the_table() -> None:
    page = PAGES[0].read_text(encoding="utf-8")
    names = {name for row in re.findall(r"^\| (`[^|]+) \|", page, re.M) for name in re.findall(r"`([a-z_]+)`", row)}
    assert set(Settings.model_fields) - {"batch_size"} <= names


def test_the_commands(checkpoint: Callable[[str], Path], tasks: LocalTasks) -> None:
    """With a local task, on the CPU."""
    texts = [page.read_text(encoding="utf-8") for page in PAGES]
    blocks = [block for text in texts for block in re.findall(r"^```bash\n(.*?)^```$", text, re.M | re.S)]
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines() if "--model_args" in line]
    assert len(lines) == 3
    name = tasks.pictures()
    for line in lines:
        words = shlex.split(line)
        given = private.parsed(words[words.index("--model_args") + 1])
        assert given["pretrained"] == CHECKPOINT
        given |= {"pretrained": str(checkpoint("llava")), "device": "cpu", "average_ratio": 0.75}
        assert words[words.index("--model") + 1] == "tokenprune"
        assert evaluate(tasks, [name], given)["results"][name]
