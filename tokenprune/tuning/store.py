"""The rows of a tune: a line per candidate and batch, so that a tune that was killed goes on."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tokenprune.engine.trials.fidelity import Fidelity
from tokenprune.errors import OutputError, TokenPruneWarning
from tokenprune.files.folder import OutputFolder
from tokenprune.files.lines import Row, lines, parse
from tokenprune.fingerprint import same
from tokenprune.fingerprint.definition import what_differs
from tokenprune.fingerprint.origin import ORIGIN, Origin

#: Settings that may change between two calls for one folder: what was measured stays comparable.
FREE = ("requires", "budget", "budgets", "methods", "compositions", "objective", "error", "first", "output", "strict")
#: What every row has: what was measured, and a list of numbers per measure.
NAMES = ("budget", "candidate", "batch")
MEASURES = ("agreement", "divergence", "distance", "average", "flops")


@dataclass
class BudgetRows:
    """The rows of one budget; a :class:`tokenprune.engine.trials.race.RaceLog`.

    Attributes:
        budget: The budget in a few words.
        store: Where new rows are written; None keeps them in memory only.
        measured: What is known, by candidate and batch.
    """

    budget: str
    store: TuneStore | None = None
    measured: dict[tuple[str, int], Fidelity] = field(default_factory=dict)

    def read(self, name: str, batch: int) -> Fidelity | None:
        """What was measured of a candidate on a batch; None if nothing was."""
        return self.measured.get((name, batch))

    def write(self, name: str, batch: int, fidelity: Fidelity) -> None:
        """Remember what was measured."""
        self.measured[name, batch] = fidelity
        if self.store is not None:
            row: Row = {"budget": self.budget, "candidate": name, "batch": batch, **fidelity.to_lists()}
            self.store.append_rows(self.store.samples, [row])


class TuneStore(OutputFolder):
    """The files of one tune."""

    def claim(self, settings: Mapping[str, Any], origin: Origin, batches: Sequence[str | None]) -> None:
        """Reserve the folder for a tune, or go on with the tune that it holds.

        Args:
            settings: The settings of the tune, JSON-ready.
            origin: The model's weights, and versions of code.
            batches: The fingerprint of every batch; None where a batch cannot be read.

        Raises:
            OutputError: The folder holds something else: an experiment, or a tune with other settings, of another
                model, by other code, of other samples, or of a version without fingerprints that can be compared.

        Warns:
            TokenPruneWarning: It is unknown whether model, code and samples are the same, or will be for a later run.
        """
        fix = "choose another output folder, or delete that one"
        path = self.folder / "config.yaml"
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
            made = self.read_json(ORIGIN)
            if made is None:
                what = f"{self.folder} holds a tune of an older version of tokenprune, of unknown weights and samples"
                raise OutputError(what, fix)
            origin.check(self.folder, made)
            self._check_batches(known.get("batches"), batches)
        else:
            if self.samples.exists():
                raise OutputError(f"{self.samples} is not of a tune, or the config.yaml beside it is missing", fix)
            origin.announce(self.folder)
            self.write_json(ORIGIN, origin.stored())
            self.write_json("tune.json", {"batches": list(batches)})
        self.write("config.yaml", yaml.safe_dump(dict(settings), sort_keys=False))
        self._remove_damaged_lines()

    def _check_batches(self, stored: Any, batches: Sequence[str | None]) -> None:
        """Check that the samples are those of the folder's rows."""
        fix = "choose another output folder, or delete that one"
        if not isinstance(stored, list) or len(stored) != len(batches):
            count = len(stored) if isinstance(stored, list) else "an unknown number of"
            what = f"{self.folder} holds a tune on other samples ({count} batches there, {len(batches)} now)"
            raise OutputError(what, fix)
        unknown = 0
        for number, (old, new) in enumerate(zip(stored, batches, strict=True), 1):
            equal = same(old, new)
            unknown += equal is None
            if equal is False:
                what = f"{self.folder} holds a tune on other samples (batch {number}: {old} there, {new} now)"
                raise OutputError(what, fix)
        if unknown:
            warnings.warn(
                f"{unknown} of {len(batches)} batches cannot be read: whether {self.folder} holds a tune on the same"
                " samples is unknown",
                TokenPruneWarning,
                stacklevel=2,
            )

    def rows(self, budget: str, definitions: Mapping[str, Any]) -> BudgetRows:
        """What was measured at a budget, and where more of it is written.

        Args:
            budget: The budget in a few words.
            definitions: All fields of every candidate's method and the versions of its code, JSON-ready, by name.

        Raises:
            OutputError: A name stood for another candidate when the folder was written, or for other code, or it is
                unknown for which.
        """
        stored = self.read_json("candidates.json")
        known: dict[str, Any] = stored if isinstance(stored, dict) else {}
        for name, definition in definitions.items():
            what = what_differs(known.get(f"{budget} / {name}", definition), definition)
            if what is not None:
                raise OutputError(
                    f"{self.folder} holds rows of {name!r} with {what}",
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
                found.measured[name, row["batch"]] = _fidelity(row)
        new = {f"{budget} / {name}": definition for name, definition in definitions.items()}
        if not new.keys() <= known.keys():
            self.write_json("candidates.json", new | known)  # rows of an older version do not learn of code later
        return found

    def _rows(self) -> list[Row]:
        return [row for row in map(_row, lines(self.samples)) if row is not None]

    def _remove_damaged_lines(self) -> None:
        """Remove what a kill cut in the middle, or something damaged: it is measured again."""
        if any(_row(text) is None for text in lines(self.samples)):
            self.write_lines(self.samples.name, self._rows())


def _row(text: str) -> Row | None:
    """A line as a row; None if it is no whole row of as many numbers for each measure."""
    row = parse(text, *NAMES, *MEASURES)
    if row is None:
        return None
    measures = [row[name] for name in (*MEASURES, "score") if name in row]
    if not all(isinstance(values, list) and len(values) == len(measures[0]) for values in measures):
        return None
    numbers = all(isinstance(value, int | float | None) for values in measures for value in values)
    return row if numbers and isinstance(row["candidate"], str) and isinstance(row["batch"], int) else None


def _fidelity(row: Row) -> Fidelity:
    """What a row says; NaN is stored as null."""
    names = [name for name in (*MEASURES, "score") if name in row]
    return Fidelity.from_lists({name: [math.nan if value is None else value for value in row[name]] for name in names})


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
