"""Runs of lmms-eval, in this process and as a command, and the same questions asked by ``tokenprune run``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lmms_eval.evaluator import simple_evaluate
from lmms_eval.tasks import TaskManager
from local_tasks import ROOT, TOKENS, LocalTasks

import tokenprune as tp

#: A method inside the language model, for models of a few layers.
FASTV = (
    "layers: {name: fixed, layers: [1]}\npruner: {name: topk, scorer: fastv}\nbudget: {name: keep_ratio, ratio: 0.5}\n"
)
RANDOM = FASTV.replace("fastv", "random")
#: What the command is started with: processors need torchvision, whose operators do not fit this build of torch.
START = "import tests.support.torchvision_stub; from lmms_eval.cli.dispatch import main; main()"


def arguments(model: Path | str, **more: Any) -> dict[str, Any]:
    """``--model_args`` for a checkpoint on the CPU, in full precision."""
    return {"pretrained": str(model), "device": "cpu", "dtype": "float32", **more}


def text(given: Mapping[str, Any]) -> str:
    """``--model_args`` as the command takes them."""
    return ",".join(f"{name}={value}" for name, value in given.items())


def evaluate(tasks: LocalTasks, names: Sequence[str], given: Mapping[str, Any], **options: Any) -> dict[str, Any]:
    """Run tasks in this process; errors are exceptions."""
    manager = TaskManager("WARNING", include_path=str(tasks.folder), include_defaults=False, model_name="tokenprune")
    options = {"batch_size": 2, "bootstrap_iters": 0, **options}
    found: dict[str, Any] = simple_evaluate(
        model="tokenprune", model_args=text(given), tasks=list(names), task_manager=manager, **options
    )
    return found


def answers(results: Mapping[str, Any], task: str) -> list[Any]:
    """The answer to every document of a task, in their order."""
    samples = sorted(results["samples"][task], key=lambda sample: sample["doc_id"])
    return [
        sample["filtered_resps"] if len(sample["filtered_resps"]) > 1 else sample["filtered_resps"][0]
        for sample in samples
    ]


def costs(results: Mapping[str, Any], task: str) -> list[Any]:
    """What lmms-eval's file of samples says of every document's prefill."""
    samples = sorted(results["samples"][task], key=lambda sample: sample["doc_id"])
    return [sample["token_counts"][0] for sample in samples]


def command(*options: str, environment: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run ``lmms-eval --model tokenprune`` as a command."""
    return subprocess.run(
        [sys.executable, "-c", START, "--model", "tokenprune", *options],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})},
        capture_output=True,
        text=True,
        check=False,
    )


def asked_by_run(
    folder: Path,
    rows: Sequence[Mapping[str, Any]],
    model: Mapping[str, Any],
    methods: Sequence[Any],
    budget: Any,
    calibration: int = 0,
) -> dict[str, list[dict[str, Any]]]:
    """The rows of ``tokenprune run`` for questions, by the method's label; the unpruned model is among them.

    Args:
        folder: Where the questions and the results are written.
        rows: The questions, as the task ``vqa`` reads them.
        model: The model.
        methods: The entries of the methods.
        budget: The budget.
        calibration: Samples on which layers are chosen.
    """
    folder.mkdir()
    data = folder / "questions.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    config = tp.ExperimentConfig.from_dict(
        {
            "model": dict(model),
            "task": {"name": "vqa", "data": str(data)},
            "methods": list(methods),
            "budgets": [budget],
            "output": str(folder / "results"),
            "batch_size": 2,
            "max_new_tokens": TOKENS,
            "calibration": calibration,
            "timing": 0,
            "examples": 0,
            "oracle": False,
        }
    )
    result = tp.run_experiment(config)
    assert not result.skipped
    found: dict[str, list[dict[str, Any]]] = {}
    for row in sorted(result.rows, key=lambda row: row["position"]):
        found.setdefault(row["method"], []).append(row)
    return found
