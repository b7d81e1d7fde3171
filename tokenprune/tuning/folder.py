"""A finished tune, read from its folder. No model is loaded."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tokenprune.config import Method
from tokenprune.engine.trials.fidelity import Fidelity
from tokenprune.engine.trials.race import Goal
from tokenprune.errors import MissingDataError, OutputError, TokenPruneError
from tokenprune.output.folder import OutputFolder
from tokenprune.output.lines import Row, lines, parse
from tokenprune.tuning.ranking import Measured, Ranking, rank
from tokenprune.tuning.report import ROWS, SETUP
from tokenprune.tuning.result import TuneResult
from tokenprune.tuning.setup import TuneSetup


def holds_tune(folder: str | Path) -> bool:
    """Whether a folder holds a tune."""
    return any((Path(folder) / name).is_file() for name in ("tune.json", ROWS))


def read_tune(folder: str | Path) -> TuneResult:
    """Read the tune that a folder holds, as :func:`tokenprune.tuning.run_tune` returned it.

    Args:
        folder: The output folder of a tune.

    Raises:
        MissingDataError: There is no such folder.
        OutputError: The tune has not finished, or its rows are damaged.
        TokenPruneError: A candidate's method cannot be made here, e.g. because a plugin is missing.
    """
    output = OutputFolder(folder)
    if not output.folder.is_dir():
        raise MissingDataError(f"{output.folder} does not exist", "name the output folder of a tune")
    found = [parse(text, "budget", "candidate") for text in lines(output.folder / ROWS)]
    rows = [row for row in found if row is not None]
    if not rows or len(rows) < len(found):
        raise OutputError(f"the tune in {output.folder} has not finished", "run `tokenprune tune` again: it continues")
    settings = output.config()
    stored = output.read_mapping(SETUP)
    try:
        setup = TuneSetup(**stored["facts"]) if "facts" in stored else _setup(settings)
        budgets = list(dict.fromkeys(row["budget"] for row in rows))
        seed = settings.get("seed", 0)
        rankings = [
            _ranking(budget, [row for row in rows if row["budget"] == budget], setup.goal, seed) for budget in budgets
        ]
    except TokenPruneError:
        raise  # e.g. a plugin that is missing
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise OutputError(
            f"{output.folder / ROWS} is damaged ({type(error).__name__}: {error})",
            "run `tokenprune tune` again: it writes the file again",
        ) from None
    return TuneResult(tuple(rankings), setup, str(output.folder), stored.get("skipped", {}))


def _ranking(budget: str, rows: Sequence[Row], goal: Goal, seed: int) -> Ranking:
    ran = [row for row in rows if "refused" not in row]
    refused = {row["candidate"]: row["refused"] for row in rows if "refused" in row}
    measured = [
        Measured(
            row["candidate"],
            row["origin"],
            Method.from_dict(row["method"], f"the candidate {row['candidate']!r}"),
            Fidelity.from_lists({name: _numbers(row["samples"][name]) for name in row["samples"] if name != "loss"}),
            torch.tensor(_numbers(row["samples"]["loss"])),
            row["left"],
        )
        for row in ran
    ]
    return rank(budget, measured, refused, max(row["seen"] for row in ran), goal, seed)


def _numbers(values: Sequence[float | None]) -> list[float]:
    """Numbers as they were; NaN is stored as null."""
    return [math.nan if value is None else value for value in values]


def _setup(settings: dict[str, Any]) -> TuneSetup:
    """Derive the setup from the settings, for folders of versions that did not store it."""
    model, task = settings["model"], settings["task"]
    goal: Goal = "score" if settings.get("labels") else settings["objective"]
    name = str(model.get("checkpoint") or model["name"]).rstrip("/").rpartition("/")[2]
    data = f"{task['name']} ({task['data']})" if isinstance(task.get("data"), str) else task["name"]
    return TuneSetup(name, data, goal, settings["tokens"], settings["error"])
