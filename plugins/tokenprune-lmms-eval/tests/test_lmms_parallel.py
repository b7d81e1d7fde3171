"""Two processes share an evaluation: answers, scores and report are those of one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from evaluation import RANDOM, arguments, text
from local_tasks import ROOT, LocalTasks

SCRIPT = """
import sys
import tests.support.torchvision_stub
from lmms_eval.cli.dispatch import main

sys.exit(main())
"""


def evaluated(script: Path, processes: int, port: int, options: list[str]) -> subprocess.CompletedProcess[str]:
    launch = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--master-port", str(port)]
    return subprocess.run(
        [sys.executable, *(launch if processes > 1 else []), str(script), "--model", "tokenprune", *options],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        text=True,
        check=False,
    )


def found(folder: Path) -> tuple[list[Any], dict[str, Any], dict[str, Any]]:
    """The answers by document, the scores and the report."""
    (samples,) = folder.rglob("*_samples_tp_pictures.jsonl")
    rows = sorted((json.loads(line) for line in samples.open()), key=lambda row: row["doc_id"])
    (results,) = folder.rglob("*_results.json")
    (report,) = folder.rglob("*_tokenprune_report.json")
    shown = json.loads(report.read_text(encoding="utf-8"))
    scores = json.loads(results.read_text(encoding="utf-8"))["results"]
    return [(row["doc_id"], row["filtered_resps"], row["token_counts"]) for row in rows], scores, shown


def test_two_processes(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    """Five documents: one process gets one more, and the other a copy that does not count."""
    tasks = LocalTasks(tmp_path / "tasks", ["what is this"] * 5)
    name = tasks.pictures()
    script = tmp_path / "start.py"
    script.write_text(SCRIPT, encoding="utf-8")
    (tmp_path / "random.yaml").write_text(RANDOM, encoding="utf-8")
    given = text(arguments(checkpoint("llava"), method=tmp_path / "random.yaml"))
    options = ["--model_args", given, "--tasks", name, "--include_path", str(tasks.folder), "--log_samples"]
    port = 20000 + os.getpid() % 20000
    runs = []
    for processes in (1, 2):
        out = tmp_path / str(processes)
        done = evaluated(script, processes, port, [*options, "--output_path", str(out)])
        assert done.returncode == 0, done.stdout + done.stderr
        runs.append(found(out))
    (one, scores, report), (two, other_scores, other_report) = runs
    assert len(one) == 5
    assert one == two
    assert scores == other_scores
    assert (report["processes"], other_report["processes"]) == (1, 2)
    assert report["tasks"] == other_report["tasks"]
    assert report["tasks"][name]["requests"] == 5


def test_an_error_of_one_process_ends_all(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    tasks = LocalTasks(tmp_path / "tasks")
    rows = tasks.rows()
    rows[1]["image"]["bytes"] = b"no picture"
    name = tasks.add("tp_broken", rows, doc_to_visual="utils.pictures")
    script = tmp_path / "start.py"
    script.write_text(SCRIPT, encoding="utf-8")
    given = text(arguments(checkpoint("llava"), method="divprune", keep_ratio=0.5))
    options = ["--model_args", given, "--tasks", name, "--include_path", str(tasks.folder)]
    done = evaluated(script, 2, 20001 + os.getpid() % 20000, options)
    assert done.returncode != 0
    assert "error: tp_broken, document 1: " in done.stderr
