"""The folder of a job: what it was asked, whether it has finished, and its result in lmms-eval's JSON."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenprune.errors import OutputError, TokenPruneError

from .jobs import Job

#: The files of a job's folder: what was asked, and what came out.
ASKED, DONE = "job.json", "done.json"


class IncompleteError(OutputError):
    """lmms-eval has written a result that is none: the job has to run again."""


@dataclass(frozen=True)
class Result:
    """The result of a finished job.

    Attributes:
        score: The number of the table.
        samples: Samples that were answered.
        file: The results JSON of lmms-eval, relative to the job's folder.
        layer_average: Visual tokens, averaged over layers and samples, as the plugin's report measured them. None where
            no report is of all samples: a job that went on has one of the samples that it asked last.
    """

    score: float
    samples: int
    file: str
    layer_average: float | None = None


def check_folder(job: Job) -> None:
    """Check that a job's folder holds nothing of other settings.

    Raises:
        OutputError: It does; the message names the first setting that differs.
    """
    stored = _read(job.folder / ASKED)
    if stored is None:
        if job.folder.is_dir() and any(path.name != ".lock" for path in job.folder.iterdir()):
            raise OutputError(
                f"{job.folder} holds files, and no {ASKED} that says of what",
                "remove the folder, or give another --output",
            )
        return
    asked = json.loads(json.dumps(job.settings))
    for name in {**stored, **asked}:
        if stored.get(name) != asked.get(name):
            raise OutputError(
                f"{job.folder} holds results of other settings: {name} was {_short(stored.get(name))}, and is now"
                f" {_short(asked.get(name))}",
                "remove the folder, or give another --output",
            )


def finished(job: Job) -> Result | None:
    """The result of a job that has finished with the settings that it has now; None if it has not.

    Raises:
        OutputError: The folder holds results of other settings.
    """
    check_folder(job)
    stored = _read(job.folder / DONE)
    return None if stored is None else Result(**stored)


def collect(job: Job) -> Result | None:
    """Read, check and keep the result that lmms-eval has written; None if it has written none.

    Raises:
        OutputError: The result is not that of this job.
        IncompleteError: It is no result.
    """
    files = _written(job)
    if not files:
        return None
    result = read_result(job, files[-1])
    write(job.folder / DONE, vars(result))
    return result


def take_up(job: Job) -> Result | None:
    """The result of an earlier start: lmms-eval may have finished although the driver had died.

    Raises:
        OutputError: The folder holds results of other settings, or of another job.
    """
    try:
        return finished(job) or collect(job)
    except IncompleteError:
        for file in _written(job):
            file.unlink()
        return None


def _written(job: Job) -> list[Path]:
    """The results that lmms-eval has written, the newest last."""
    return sorted((job.folder / "lmms").glob("*/*_results.json"), key=lambda path: path.stat().st_mtime)


def read_result(job: Job, file: Path) -> Result:
    """The score in one results JSON of lmms-eval 0.7.3.

    Raises:
        OutputError: The file is of another job.
        IncompleteError: It is broken, or has no score, or one of fewer samples than were asked for.
    """
    try:
        data = _read(file) or {}
    except OutputError as error:  # the job was killed while it wrote
        raise IncompleteError(error.what, "run the job again") from None
    config = data.get("config", {})
    for name, wanted in (("model_args", job.model_args), ("limit", job.limit)):
        if config.get(name) != wanted:
            raise OutputError(
                f"{file} has {name} {_short(config.get(name))} where the job has {_short(wanted)}",
                "remove it, and run the job again",
            )
    counts: Mapping[str, Any] = data.get("n-samples", {})
    scores = {
        task: values[job.benchmark.metric]
        for task, values in data.get("results", {}).items()
        if job.benchmark.metric in values and task in counts
    }
    if not scores or set(scores) != set(counts):
        raise IncompleteError(
            f"{file}: no score {job.benchmark.metric!r} of {', '.join(sorted(set(counts) - set(scores))) or 'a task'}",
            "see the log of the job",
        )
    for task, score in scores.items():
        if not isinstance(score, int | float) or not math.isfinite(score):
            raise IncompleteError(f"{file}: the score of {task} is {score!r}, and no number", "see the log of the job")
        wanted = counts[task]["original"] if job.limit is None else min(job.limit, counts[task]["original"])
        if counts[task]["effective"] != wanted:
            raise IncompleteError(
                f"{file}: {counts[task]['effective']} of {wanted} samples of {task} were answered", "run the job again"
            )
    samples = int(sum(count["effective"] for count in counts.values()))  # with --limit they are floats
    total = sum(scores[task] * counts[task]["effective"] for task in scores)
    score, name = job.benchmark.scale * total / samples, str(file.relative_to(job.folder))
    return Result(score, samples, name, _measured(file.parent, samples))


def _measured(folder: Path, samples: int) -> float | None:
    """The layer average in the newest report of all samples."""
    for file in sorted(folder.glob("*_tokenprune_report.json"), reverse=True):
        tasks = (_read(file) or {})["tasks"].values()
        if sum(task["requests"] for task in tasks) == samples:
            return float(sum(task["requests"] * task["average"]["layer_average"] for task in tasks) / samples)
    return None


def write(path: Path, data: Mapping[str, Any]) -> None:
    """Write JSON so that the file is either whole or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(part, path)


def _read(path: Path) -> dict[str, Any] | None:
    """A mapping in a JSON file; None if there is no such file.

    Raises:
        OutputError: The file is broken.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise OutputError(
            f"{path} is broken ({' '.join(str(error).split())})", "remove the folder of the job"
        ) from None
    if not isinstance(data, dict):
        raise OutputError(f"{path} holds no mapping", "remove the folder of the job")
    return data


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def why(error: TokenPruneError) -> str:
    """An error on one line."""
    return " ".join(str(error).split())
