"""The rows of a tune: a line per candidate and batch, so that a tune that was killed goes on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from tokenprune.engine.fidelity import Fidelity
from tokenprune.errors import OutputError
from tokenprune.files.folder import OutputFolder
from tokenprune.files.lines import Row, line, lines, parse

#: Settings that may change between two calls for one folder: what was measured stays comparable.
FREE = ("requires", "budget", "budgets", "methods", "compositions", "objective", "error", "first", "output", "strict")
FIELDS = ("budget", "candidate", "batch", "agreement", "divergence", "distance", "average", "flops")


@dataclass(frozen=True)
class Measurement:
    """What a candidate did to a batch.

    Attributes:
        fidelity: How close it is to the unpruned model.
        score: The task's score of its answers, ``[samples]``; None without labels.
    """

    fidelity: Fidelity
    score: Tensor | None = None


@dataclass
class BudgetRows:
    """The rows of one budget; a :class:`tokenprune.engine.race.RaceLog`.

    Attributes:
        budget: The budget in a few words.
        store: Where new rows are written; None keeps them in memory only.
        measured: What is known, by candidate and batch.
    """

    budget: str
    store: TuneStore | None = None
    measured: dict[tuple[str, int], Measurement] = field(default_factory=dict)

    def read(self, name: str, batch: int) -> Fidelity | None:
        """What was measured of a candidate on a batch; None if nothing was."""
        found = self.measured.get((name, batch))
        return None if found is None else found.fidelity

    def score(self, name: str, batch: int) -> Tensor | None:
        """The scores of a candidate's answers on a batch; None if they were not taken."""
        found = self.measured.get((name, batch))
        return None if found is None else found.score

    def write(self, name: str, batch: int, fidelity: Fidelity, score: Tensor | None = None) -> None:
        """Remember what was measured."""
        self.measured[name, batch] = Measurement(fidelity, score)
        if self.store is not None:
            self.store.append(self.budget, name, batch, self.measured[name, batch])


class TuneStore(OutputFolder):
    """The files of one tune. The folder is created when it is locked.

    Args:
        folder: The folder of the files.

    Raises:
        OutputError: It is no path.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__(folder)
        self.samples = self.folder / "samples.jsonl"

    def claim(self, settings: Mapping[str, Any], model: str, batches: Sequence[str]) -> None:
        """Reserve the folder for a tune, or go on with the tune that it holds.

        Args:
            settings: The settings of the tune, JSON-ready.
            model: A text that changes with the model's weights and configuration.
            batches: A text for every batch, which changes with its samples.

        Raises:
            OutputError: The folder holds something else: an experiment, or a tune with other settings, of another
                model, or of other samples.
        """
        fix = "choose another output folder, or delete that one"
        path = self.folder / "config.yaml"
        prints = {"model": model, "batches": list(batches)}
        if path.is_file():
            stored = _read_settings(path)
            known = self.read_json("tune.json")
            if not isinstance(known, dict):
                raise OutputError(f"{self.folder} holds results that are not those of a tune", fix)
            different = next((key for key in sorted({*stored, *settings}) if _differ(key, stored, settings)), None)
            if different is not None:
                old, new = (repr(data.get(different)) for data in (stored, settings))
                what = f"{self.folder} holds a tune with other settings ({different}: {old} there, {new} now)"
                raise OutputError(what, fix)
            if known.get("model") != model:
                raise OutputError(f"{self.folder} holds a tune of another model", fix)
            if known.get("batches") != prints["batches"]:
                raise OutputError(f"{self.folder} holds a tune on other samples", fix)
        else:
            if self.samples.exists():
                raise OutputError(f"{self.samples} is not of a tune, or the config.yaml beside it is missing", fix)
            self.write_json("tune.json", prints)
        self.write("config.yaml", yaml.safe_dump(dict(settings), sort_keys=False))
        self._remove_torn_lines()

    def rows(self, budget: str, definitions: Mapping[str, Any]) -> BudgetRows:
        """What was measured at a budget, and where more of it is written.

        Args:
            budget: The budget in a few words.
            definitions: All fields of every candidate's method, JSON-ready, by name.

        Raises:
            OutputError: A name stood for another candidate when the folder was written, or it is unknown for which.
        """
        stored = self.read_json("candidates.json")
        known: dict[str, Any] = stored if isinstance(stored, dict) else {}
        for name, definition in definitions.items():
            if known.get(f"{budget} / {name}", definition) != definition:
                raise OutputError(
                    f"{self.folder} holds rows of {name!r} with another definition",
                    "give the candidate another label, choose another output folder, or delete that one",
                )
        found = BudgetRows(budget, self)
        for row in self._rows():
            if row["budget"] == budget:
                name = row["candidate"]
                if name in definitions and f"{budget} / {name}" not in known:
                    raise OutputError(
                        f"{self.folder} holds rows of {name!r}, and its candidates.json does not say what that is",
                        "choose another output folder, or delete that one",
                    )
                found.measured[name, row["batch"]] = _measurement(row)
        new = {f"{budget} / {name}": definition for name, definition in definitions.items()}
        if not new.items() <= known.items():
            self.write_json("candidates.json", known | new)
        return found

    def append(self, budget: str, name: str, batch: int, measured: Measurement) -> None:
        """Append a row and flush it to the disk.

        Raises:
            OutputError: The disk is full, or the folder cannot be written.
        """
        row: Row = {"budget": budget, "candidate": name, "batch": batch, **measured.fidelity.to_lists()}
        if measured.score is not None:
            row["score"] = measured.score.tolist()
        self.append_rows(self.samples, [row])

    def _rows(self) -> list[Row]:
        return [row for row in (parse(text, *FIELDS) for text in lines(self.samples)) if row is not None]

    def _remove_torn_lines(self) -> None:
        """Remove what a kill cut in the middle: the next row would be written behind it."""
        if any(parse(text, *FIELDS) is None for text in lines(self.samples)):
            self.write(self.samples.name, "".join(map(line, self._rows())))


def _measurement(row: Row) -> Measurement:
    numbers = {name: [math.nan if value is None else value for value in row[name]] for name in FIELDS[3:]}
    score = torch.tensor(row["score"], dtype=torch.float32) if "score" in row else None
    return Measurement(Fidelity.from_lists(numbers), score)


def _differ(key: str, stored: Mapping[str, Any], settings: Mapping[str, Any]) -> bool:
    return key not in FREE and stored.get(key) != settings.get(key)


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        settings = None
    if not isinstance(settings, dict):
        raise OutputError(
            f"{path} is damaged, so it is unknown what the rows in its folder belong to",
            "repair the file, choose another output folder, or delete that one",
        )
    return settings
