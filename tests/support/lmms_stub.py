"""A stand-in for lmms-eval 0.7.3: the options that the driver of the paper's tables uses, and results JSON of its form.

What a task does, is in a JSON file that ``LMMS_STUB`` names: task -> one word. Tasks that it does not name get a score.
Every start leaves a line in ``calls.txt`` beside that file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

#: Words: end with exit code 1; end well without results; a score that is no number; fewer samples than asked for; wait
#: at the first start, with a part of the answers in the cache; write everything, and then wait.
FAILS, NOTHING, NAN, FEW, WAITS, LINGERS = "fails", "nothing", "nan", "few", "waits", "lingers"
#: Task -> key of the score, samples, score.
TASKS = {
    "gqa": ("exact_match,none", 12578, 0.619),
    "mme": ("mme_perception_score,none", 2374, 1500.0),
    "pope": ("pope_f1_score,none", 9000, 0.85),
    "textvqa_val": ("exact_match,none", 5000, 0.5),
}
_MAIN = """
import argparse, json, os, sys, time
from pathlib import Path

TASKS = {tasks!r}
parser = argparse.ArgumentParser()
for name in ("model", "model_args", "tasks", "batch_size", "output_path", "use_cache"):
    parser.add_argument("--" + name, required=True)
parser.add_argument("--limit", type=float)
given = parser.parse_args()
script = Path(os.environ["LMMS_STUB"])
word = json.loads(script.read_text()).get(given.tasks, "")
with open(script.with_name("calls.txt"), "a") as calls:
    seen = [given.model_args, given.tasks, os.environ.get("CUDA_VISIBLE_DEVICES"), os.getpid()]
    calls.write(json.dumps(seen) + "\\n")
cache = Path(given.use_cache)
again = cache.is_dir()
cache.mkdir(parents=True, exist_ok=True)
if word == "fails":
    print("error: model_args: unknown name 'x'", file=sys.stderr)
    sys.exit(1)
if word == "waits" and not again:
    print("waiting", flush=True)
    time.sleep(600)
key, samples, score = TASKS[given.tasks]
effective = min(given.limit or samples, samples)
if word == "few":
    effective -= 1
result = {{
    "results": {{given.tasks: {{"alias": given.tasks, key: float("nan") if word == "nan" else score}}}},
    "configs": {{given.tasks: {{"task": given.tasks}}}},
    "n-samples": {{given.tasks: {{"original": samples, "effective": effective}}}},
    "config": {{"model": given.model, "model_args": given.model_args, "limit": given.limit}},
    "date": "20260101_000000",
}}
folder = Path(given.output_path) / "llava-hf__llava-1.5-7b-hf"
folder.mkdir(parents=True, exist_ok=True)
if word != "nothing":
    (folder / "20260101_000000_results.json").write_text(json.dumps(result))
if word == "lingers":
    print("written", flush=True)
    time.sleep(600)
"""


def install(folder: Path) -> None:
    """Write the stand-in, with the plugin's entry point, into a folder that is then put on the path."""
    package = folder / "lmms_eval"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("", encoding="utf-8")
    (package / "__main__.py").write_text(_MAIN.format(tasks=TASKS), encoding="utf-8")
    info = folder / "tokenprune_lmms_eval-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: tokenprune-lmms-eval\nVersion: 0.1.0\n", encoding="utf-8"
    )
    (info / "entry_points.txt").write_text("[lmms_eval.models]\ntokenprune-lmms-eval = x:y\n", encoding="utf-8")


def script(file: Path, words: Mapping[str, str]) -> None:
    """Say what tasks do from now on."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(words), encoding="utf-8")


def calls(file: Path) -> list[tuple[str, str, str | None, int]]:
    """Every start so far: model arguments, task, visible GPUs, number of the process."""
    log = file.with_name("calls.txt")
    lines = log.read_text(encoding="utf-8").splitlines() if log.is_file() else []
    return [tuple(json.loads(line)) for line in lines]
