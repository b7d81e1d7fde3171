"""The rows of a tune: a line per candidate and batch, so that a tune that was killed goes on."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from tokenprune.engine.trials.fidelity import Fidelity
from tokenprune.errors import ConfigError, MissingDataError, OutputError, TokenPruneWarning
from tokenprune.fingerprint import same
from tokenprune.fingerprint.origin import ORIGIN, Origin
from tokenprune.output.folder import CONFIG
from tokenprune.output.lines import Row, lines, parse
from tokenprune.output.run_folder import ANOTHER_FOLDER, RunFolder
from tokenprune.selectors.entropy_profile import EntropyProfile
from tokenprune.tuning.config import TuneConfig
from tokenprune.tuning.measuring import Known

#: The files of the samples, of the entropy curves, and of equal times.
TUNE, CURVES, TIMES = "tune.json", "entropy.json", "times.json"
#: The fields of every row: what was measured, and a list of numbers per measure.
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
        """The numbers of a candidate on a batch; None if it was not measured."""
        return self.measured.get((name, batch))

    def write(self, name: str, batch: int, fidelity: Fidelity) -> None:
        """Remember the numbers of a candidate on a batch."""
        self.measured[name, batch] = fidelity
        if self.store is not None:
            row: Row = {"budget": self.budget, "candidate": name, "batch": batch, **fidelity.to_lists()}
            self.store.append_rows(self.store.samples, [row])


class TuneStore(RunFolder):
    """The files of one tune."""

    definitions = "candidates.json"

    def claim_tune(self, settings: Mapping[str, Any], origin: Origin, batches: Sequence[str | None]) -> None:
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
        if self.claimed:
            known = self.read_json(TUNE)
            if not isinstance(known, dict):
                raise OutputError(f"{self.folder} holds results that are not those of a tune", ANOTHER_FOLDER)
            self.check_settings(settings, TuneConfig.free())
            if self.read_json(ORIGIN) is None:
                what = f"{self.folder} holds a tune of an older version of tokenprune, of unknown weights and samples"
                raise OutputError(what, ANOTHER_FOLDER)
            self.check_origin(origin)
            self._check_batches(known.get("batches"), batches)
        else:
            if self.samples.exists():
                what = f"{self.samples} is not of a tune, or the {CONFIG} beside it is missing"
                raise OutputError(what, ANOTHER_FOLDER)
            self.write_json(TUNE, {"batches": list(batches)})
        self.claim(settings, origin, {})
        self._remove_damaged_lines()

    def _check_batches(self, stored: Any, batches: Sequence[str | None]) -> None:
        """Check that the samples are those of the folder's rows."""
        if not isinstance(stored, list) or len(stored) != len(batches):
            count = len(stored) if isinstance(stored, list) else "an unknown number of"
            what = f"{self.folder} holds a tune on other samples ({count} batches there, {len(batches)} now)"
            raise OutputError(what, ANOTHER_FOLDER)
        unknown = 0
        for number, (old, new) in enumerate(zip(stored, batches, strict=True), 1):
            equal = same(old, new)
            unknown += equal is None
            if equal is False:
                what = f"{self.folder} holds a tune on other samples (batch {number}: {old} there, {new} now)"
                raise OutputError(what, ANOTHER_FOLDER)
        if unknown:
            warnings.warn(
                f"{unknown} of {len(batches)} batches cannot be read: whether {self.folder} holds a tune on the same"
                " samples is unknown",
                TokenPruneWarning,
                stacklevel=2,
            )

    def rows(self, budget: str, definitions: Mapping[str, Any]) -> BudgetRows:
        """Open the rows of one budget for reading and appending.

        Args:
            budget: The budget in a few words.
            definitions: All fields of every candidate's method and the versions of its code, JSON-ready, by name.

        Raises:
            OutputError: A name stood for another candidate when the folder was written, or for other code, or it is
                unknown for which.
        """
        full = {f"{budget} / {name}": definition for name, definition in definitions.items()}
        known = self.check_definitions(full)
        found = BudgetRows(budget, self)
        for row in self._rows():
            if row["budget"] == budget:
                name = row["candidate"]
                if name in definitions and f"{budget} / {name}" not in known:
                    raise OutputError(
                        f"{self.folder} holds rows of {name!r}, and its {self.definitions} does not say what that is",
                        ANOTHER_FOLDER,
                    )
                found.measured[name, row["batch"]] = _fidelity(row)
        self.add_definitions(full)
        return found

    def known(self) -> Known:
        """What was measured before the races; a damaged file is none."""
        curves = None
        with suppress(ConfigError, MissingDataError):
            curves = EntropyProfile.load(self.folder / CURVES)
        return Known(curves, self.read_json(TIMES) or {})

    def keep(self, known: Known) -> None:
        """Write what was measured before the races."""
        if known.curves is not None:
            known.curves.save(self.folder / CURVES)
        if known.times:
            self.write_json(TIMES, known.times)

    def put_in_order(self, races: Mapping[str, tuple[Sequence[str], Mapping[str, int]]]) -> None:
        """Put the rows in the order of one process where workers wrote them. Rows of other candidates come first.

        Args:
            races: Label of each budget -> its candidates, and for those that failed the first batch on which they did:
                what workers measured of later ones is removed.
        """
        if not self.unordered.exists():
            return
        budgets = {label: number for number, label in enumerate(races)}
        order = {(label, name): at for label, (names, _) in races.items() for at, name in enumerate(names)}

        def place(row: Row) -> tuple[int, int, int]:
            label = row["budget"]
            at = order.get((label, row["candidate"]))
            return (-1, 0, 0) if at is None else (budgets[label], row["batch"], at)

        def kept(row: Row) -> bool:
            failed = races[row["budget"]][1] if row["budget"] in races else {}
            return bool(row["batch"] < failed.get(row["candidate"], math.inf))

        self.write_lines(self.samples.name, sorted(filter(kept, self._rows()), key=place))
        self.unordered.unlink()

    def _rows(self) -> list[Row]:
        """All whole rows."""
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
    """The numbers of a row; NaN is stored as null."""
    names = [name for name in (*MEASURES, "score") if name in row]
    return Fidelity.from_lists({name: [math.nan if value is None else value for value in row[name]] for name in names})
