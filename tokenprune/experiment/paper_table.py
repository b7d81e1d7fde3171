"""The table of an experiment for a paper (LaTeX) and for other programs (CSV)."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from tokenprune.budgets.label import in_words
from tokenprune.core.references import is_reference
from tokenprune.experiment.summary import SeriesSummary
from tokenprune.experiment.tables import COLUMNS, SHARE, main_table
from tokenprune.tables import csv, latex
from tokenprune.tables.column import Column, text

#: The rows of each result's table by the result's name; a single result may have an empty name.
Tables = Mapping[str, Sequence[SeriesSummary]]


def latex_table(tables: Tables, share: bool = False) -> str:
    r"""Write a LaTeX table: a row per method, columns per budget, accuracy in percent with its interval.

    In each column the best method is bold and the second underlined; see :func:`tokenprune.tables.latex.text`. The
    unpruned model, random choices and the upper bound ``oracle`` are references, and never marked.

    Args:
        tables: The rows of each result's table by its name; several become groups below each other.
        share: Add a column per budget: the accuracy as a share of the unpruned model's.
    """
    among = " among the methods of one result" if len(tables) > 1 else ""
    label_free = all(item.label_free for rows in tables.values() for item in rows)
    quality = "Agreement with the unpruned model" if label_free else "Accuracy"
    comment = f"{quality} in %, with its 95 % interval. Bold: best of its column{among}; underlined: second."
    columns = [replace(column, paper=True) if column is SHARE and share else column for column in COLUMNS]
    worded = {name: [replace(row, budget=in_words(row.budget)) for row in rows] for name, rows in tables.items()}
    return latex.text(
        {name: main_table(rows, columns=columns) for name, rows in worded.items()}, is_reference, [comment]
    )


def csv_table(tables: Tables) -> str:
    """Write all numbers as CSV: a row per result, method and budget. Whatever is unknown is empty.

    Args:
        tables: The rows of each result's table by its name; the column ``results`` holds the names.
    """
    columns: list[Column[tuple[str, SeriesSummary]]] = [
        text("results", lambda pair: pair[0], csv="results"),
        *(column.of(lambda pair: pair[1]) for column in COLUMNS),
    ]
    return csv.text(columns, [(name, item) for name, rows in tables.items() for item in rows])
