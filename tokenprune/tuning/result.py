"""What a tune found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tokenprune.config import Method
from tokenprune.errors import ConfigError
from tokenprune.output.folder import OutputFolder
from tokenprune.report.extra import write_drawn
from tokenprune.tuning import table
from tokenprune.tuning.page import tune_page
from tokenprune.tuning.ranking import Ranked, Ranking, pareto_front
from tokenprune.tuning.report import FACTS, ROWS, Facts, file_names, method_file, report, rows
from tokenprune.tuning.words import copies_sentence, sentence


@dataclass(frozen=True)
class TuneResult:
    """The candidates of a tune, ranked for each budget. ``print(result)`` shows the table.

    What belongs to one budget (:attr:`ranked`, :attr:`best`, :attr:`method` ...) is here for a tune of one budget; for
    several it is in each of :attr:`rankings`.

    Attributes:
        rankings: One ranking per budget.
        facts: What was tuned, and on what.
        folder: Folder of the rows; None if they were not written.
        skipped: Id of every sample that could not be used -> why.
        written: Files of the result, if it was written.
    """

    rankings: tuple[Ranking, ...]
    facts: Facts
    folder: str | None = None
    skipped: Mapping[str, str] = field(default_factory=dict)
    written: tuple[Path, ...] = ()

    @property
    def _ranking(self) -> Ranking:
        if len(self.rankings) > 1:
            raise ConfigError(
                f"the tune has {len(self.rankings)} budgets, so it has no single ranking", "use result.rankings"
            )
        return self.rankings[0]

    @property
    def ranked(self) -> tuple[Ranked, ...]:
        """The candidates that ran, the best first."""
        return self._ranking.ranked

    @property
    def refused(self) -> Mapping[str, str]:
        """Candidates that cannot run, and why."""
        return self._ranking.refused

    @property
    def best(self) -> Ranked:
        """The best candidate."""
        return self._ranking.best

    @property
    def method(self) -> Method:
        """The best candidate's method, with its budget and fixed layers."""
        return self._ranking.best.method

    @property
    def beats_random(self) -> bool:
        """Whether the best candidate beats random tokens at equal cost, beyond the noise."""
        return self._ranking.beats_random

    @property
    def sentence(self) -> str:
        """The result in one sentence; one line per budget."""
        texts = [sentence(ranking, self.facts.goal) for ranking in self.rankings]
        if len(texts) == 1:
            return texts[0]
        return "\n".join(f"{ranking.budget}: {text}" for ranking, text in zip(self.rankings, texts, strict=True))

    @property
    def front(self) -> list[Ranked]:
        """The Pareto front of cost (layer average) against loss, over all budgets; the cheapest first."""
        return pareto_front([row for ranking in self.rankings for row in ranking.ranked])

    def save(self, folder: str | Path) -> list[Path]:
        """Write the chosen method and everything that led to it.

        ``tuned.yaml`` is the method of a single budget, in the form of named methods; of several budgets each has its
        ``tuned-BUDGET.yaml``. ``report.md`` holds the tables, ``tune.jsonl`` a line per candidate with its numbers for
        every sample, ``run.json`` what was tuned. With the extra ``report`` there are also ``report.html``, a page for
        the browser, and the picture ``tune.png``, ``.svg`` and ``.pdf``.

        Args:
            folder: The folder; it is made.

        Returns:
            The paths of the files.

        Raises:
            OutputError: The folder cannot be written.

        Warns:
            NotWrittenWarning: Packages of the extra are missing; the warning names the files that were not written.
        """
        output = OutputFolder(folder)
        with output.locked():
            return self.write(output)

    def write(self, output: OutputFolder) -> list[Path]:
        """Write the files into a folder that the caller has locked; see :meth:`save`."""
        names = file_names([ranking.budget for ranking in self.rankings])
        written = [
            output.write(name, method_file(ranking, self.facts))
            for name, ranking in zip(names, self.rankings, strict=True)
        ]
        written.append(output.write("report.md", report(self.rankings, self.facts, self.skipped)))
        written.append(output.write_lines(ROWS, rows(self.rankings)))
        written.append(output.write_json(FACTS, {"facts": asdict(self.facts), "skipped": dict(self.skipped)}))

        def page(path: Path) -> list[Path]:
            from tokenprune.report.html import render

            return [output.write(path.name, render(tune_page(self.rankings, self.facts, self.skipped, output.folder)))]

        def plot(path: Path) -> list[Path]:
            from tokenprune.tuning.plot import tune_plot

            return tune_plot(self.rankings, self.facts.goal, path)

        return written + write_drawn({output.folder / "report.html": page, output.folder / "tune.png": plot})

    def __str__(self) -> str:
        parts = []
        for ranking in self.rankings:
            cells = [table.COLUMNS, *(table.cells(row, self.facts.goal) for row in ranking.ranked)]
            widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
            lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in cells]
            parts += [f"budget {ranking.budget}", *(line.rstrip() for line in lines)]
            parts += [f"refused: {name}: {reason}" for name, reason in ranking.refused.items()]
        parts += copies_sentence(self.rankings[0].samples, self.facts.copies)
        return "\n".join([*parts, self.sentence])
