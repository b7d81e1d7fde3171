"""The result of a tune."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tokenprune.budgets.label import in_words
from tokenprune.config import Method
from tokenprune.errors import ConfigError
from tokenprune.output.folder import OutputFolder
from tokenprune.report.extra import drawn, write_drawn
from tokenprune.tables.html import parts_html
from tokenprune.tables.table import Table
from tokenprune.tables.terminal import lines
from tokenprune.tuning.ranking import Ranked, Ranking, pareto_front
from tokenprune.tuning.report import (
    ROWS,
    SETUP,
    file_names,
    method_file,
    report,
    rows,
    tune_figure,
    tune_page,
    tune_plot,
)
from tokenprune.tuning.sentences import copies_sentence, sentence
from tokenprune.tuning.setup import TuneSetup
from tokenprune.tuning.tables import ranking_table


@dataclass(frozen=True)
class TuneResult:
    """The candidates of a tune, ranked for each budget. ``print(result)`` shows the table, a notebook also the picture.

    What belongs to one budget (:attr:`ranked`, :attr:`best`, :attr:`method` ...) is here for a tune of one budget; for
    several it is in each of :attr:`rankings`.

    Attributes:
        rankings: One ranking per budget.
        setup: What was tuned, and on what.
        folder: Folder of the rows; None if they were not written.
        skipped: Id of every sample that could not be used -> why.
        written: Files of the result, if it was written.
    """

    rankings: tuple[Ranking, ...]
    setup: TuneSetup
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
        texts = [sentence(ranking, self.setup.goal) for ranking in self.rankings]
        if len(texts) == 1:
            return texts[0]
        budgets = (in_words(ranking.budget) for ranking in self.rankings)
        return "\n".join(f"{budget}: {text}" for budget, text in zip(budgets, texts, strict=True))

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
            output.write(name, method_file(ranking, self.setup))
            for name, ranking in zip(names, self.rankings, strict=True)
        ]
        written.append(output.write("report.md", report(self.rankings, self.setup, self.skipped)))
        written.append(output.write_lines(ROWS, rows(self.rankings)))
        written.append(output.write_json(SETUP, {"facts": asdict(self.setup), "skipped": dict(self.skipped)}))

        def page(path: Path) -> list[Path]:
            from tokenprune.report.html import render

            return [output.write(path.name, render(tune_page(self.rankings, self.setup, self.skipped, output.folder)))]

        def plot(path: Path) -> list[Path]:
            return tune_plot(self.rankings, self.setup.goal, path)

        return written + write_drawn({output.folder / "report.html": page, output.folder / "tune.png": plot})

    @property
    def shown(self) -> Iterator[Table | str]:
        """The tables, and the lines between and below them."""
        for ranking in self.rankings:
            yield from (f"budget: {in_words(ranking.budget)}", ranking_table([ranking], self.setup.goal))
            yield from (f"cannot run: {name}: {reason}" for name, reason in ranking.refused.items())
        yield from (f"left out: sample {name}: {reason}" for name, reason in self.skipped.items())
        yield from copies_sentence(self.rankings[0].samples, self.setup.copies)
        yield self.sentence

    def _repr_html_(self) -> str:
        """HTML for a notebook: the tables, the result in words, and the picture."""
        return parts_html(*self.shown, drawn(tune_figure(self.rankings, self.setup.goal)))

    def __str__(self) -> str:
        return "\n".join(part if isinstance(part, str) else "\n".join(lines(part)) for part in self.shown)
