"""The benchmarks as commands: their files have every row. Times are not looked at."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[3]
IN_FLIGHT = (1, 8, 32)
KEPT = {1.0: 74, 0.5: 42, 0.25: 26, 0.1: 16}


WHOLE = [("stock", "vLLM unpruned", 1.0), ("ours", "unpruned", 1.0)]


def measured(folder: Path, *options: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "VLLM_ENABLE_V1_MULTIPROCESSING"}
    command = [sys.executable, "benchmarks/vllm_speed.py", "--quick", *options, "--output", str(folder)]
    subprocess.run(command, check=True, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)


def test_what_the_plugin_costs_where_nothing_is_pruned(tmp_path: Path) -> None:
    measured(tmp_path, "--keep-one")
    found = json.loads((tmp_path / "keep-one.json").read_text())
    for kind in ("pictures", "videos"):
        rows = found[kind]["rows"]
        named = Counter((row["engine"], row["method"], float(row["keep"]), row["in_flight"]) for row in rows)
        assert named == Counter((*way, in_flight) for way in WHOLE for in_flight in IN_FLIGHT)
        assert all(row["cpu_ms"]["median"] > 0 for row in rows)
    lines = [line for line in (tmp_path / "keep-one.md").read_text().splitlines() if line.startswith("- ")]
    assert sum("times its CPU time per request" in line for line in lines) == 2 * len(IN_FLIGHT)


def test_the_table_of_speeds_has_all_rows(tmp_path: Path) -> None:
    measured(tmp_path)
    found = json.loads((tmp_path / "speed.json").read_text())
    pictures = list(WHOLE)
    pictures += [("ours", name, keep) for keep in (0.5, 0.25, 0.1) for name in ("divprune", "visionzip", "random")]
    videos = [*WHOLE, ("ours", "evs", 0.25), ("evs 0.25", "vLLM's EVS", 0.25)]
    for kind, ways in (("pictures", pictures), ("videos", videos)):
        rows = found[kind]["rows"]
        named = Counter((row["engine"], row["method"], float(row["keep"]), row["in_flight"]) for row in rows)
        assert named == Counter((*way, in_flight) for way in ways for in_flight in IN_FLIGHT)
    assert all(row["prompt_tokens"] == KEPT[row["keep"]] for row in found["pictures"]["rows"])
    assert {row["prompt_tokens"] for row in found["videos"]["rows"] if row["keep"] < 1} == {28}
    text = (tmp_path / "speed.md").read_text()
    lines = [line for line in text.splitlines() if line.startswith(("| 1 |", "| 8 |", "| 32 |"))]
    assert len(lines) == 3 * (len(pictures) + len(videos))
    assert "What did not run here" in text


def test_in_float32_vllm_and_transformers_choose_the_same(tmp_path: Path) -> None:
    command = [sys.executable, "benchmarks/vllm_half.py", str(tmp_path / "half.md"), "--pictures", "3"]
    subprocess.run([*command, "--families", "llava"], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    text = (tmp_path / "half.md").read_text()
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| llava |")]
    assert "Of 3 pictures" in text
    assert [row[1] for row in rows[:-1]] == ["divprune", "mmr", "scope", "visionzip", "vispruner", "holov"]
    assert {row[2] for row in rows[:-1]} == {"0"}
