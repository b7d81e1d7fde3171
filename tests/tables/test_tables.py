"""A column is one object: what is said about it in one place is in every rendering."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest

from tests.report.pages import page
from tokenprune.report.html import render
from tokenprune.stats.estimate import Estimate
from tokenprune.tables import csv as csv_file
from tokenprune.tables import latex, markdown, terminal
from tokenprune.tables.column import Column, estimate, fill, number, text
from tokenprune.tables.table import Heading, Table


@dataclass(frozen=True)
class Fruit:
    """An item of the tables."""

    name: str
    box: str
    sweet: Estimate
    grams: float = math.nan


FRUIT = [
    Fruit("pear|nashi", "small", Estimate(0.81, 0.8, 0.82), 150.25),
    Fruit("plum", "small", Estimate(0.7, 0.6, 0.75), 30.0),
    Fruit("none", "small", Estimate.unknown()),
]
COLUMNS: list[Column[Fruit]] = [
    text("fruit", lambda item: item.name, csv="fruit"),
    text("box", lambda item: item.box, csv="box"),
    estimate("sweet %", lambda item: item.sweet, csv=("sweet", "percent"), paper=True),
]
#: The new one.
MASS: Column[Fruit] = replace(number("mass, g", lambda item: item.grams, csv="mass_grams"), paper=True)


def rendered(columns: Sequence[Column[Fruit]]) -> dict[str, str]:
    """The text of every renderer."""
    table = fill("Fruit", columns, FRUIT, about=lambda item: (item.name, item.box))
    return {
        "terminal": "\n".join(terminal.lines(table)),
        "markdown": "\n".join(markdown.lines(table)),
        "latex": latex.text({"": table}, lambda method: method == "none"),
        "csv": csv_file.text(columns, FRUIT),
        "page": render(replace(page(), table=table)),
    }


def test_a_new_column_is_one_place() -> None:
    before, after = rendered(COLUMNS), rendered([*COLUMNS, MASS])
    for name, shown in after.items():
        title = "mass_grams" if name == "csv" else "mass, g"
        value = "150.25" if name == "csv" else "150.2"
        assert title in shown, name
        assert value in shown, name
        assert title not in before[name], name
        assert value not in before[name], name


def test_the_terminal_has_words_at_the_left_and_numbers_at_the_right() -> None:
    assert rendered([COLUMNS[0], MASS])["terminal"].splitlines() == [
        "fruit       mass, g",
        "pear|nashi    150.2",
        "plum           30.0",
        "none",
    ]


def test_markdown_keeps_every_text_in_its_cell() -> None:
    lines = rendered([*COLUMNS, MASS])["markdown"].splitlines()
    assert lines[1] == "|---|---|---:|---:|"
    assert lines[2] == r"| pear\|nashi | small | 81.0 ± 1.0 | 150.2 |"
    assert lines[3] == "| plum | small | 70 [60, 75] | 30.0 |"
    strong = fill("Fruit", [COLUMNS[0].bold(lambda item: item.name == "plum")], FRUIT)
    assert markdown.lines(strong)[2:4] == [r"| pear\|nashi |", "| **plum** |"]


def test_latex_marks_the_best_and_writes_intervals_small() -> None:
    shown = rendered([*COLUMNS, MASS])["latex"]
    assert r"Method & \multicolumn{2}{c}{small} \\" in shown
    assert r" & sweet \% & mass, g \\" in shown
    assert r"pear\textbar{}nashi & \textbf{81.0} {\scriptsize$\pm$ 1.0} & 150.2 \\" in shown
    assert r"plum & \underline{70} {\scriptsize [60, 75]} & 30.0 \\" in shown
    assert r"none &  &  \\" in shown  # a reference, of which nothing is known


def test_csv_has_all_digits_and_leaves_out_what_is_unknown() -> None:
    rows = list(csv.DictReader(io.StringIO(rendered([*COLUMNS, MASS])["csv"])))
    assert list(rows[0]) == ["fruit", "box", "sweet_percent", "sweet_low_percent", "sweet_high_percent", "mass_grams"]
    assert (rows[1]["sweet_low_percent"], rows[2]["sweet_percent"], rows[2]["mass_grams"]) == ("60", "", "")


def test_columns_without_any_text_are_left_out() -> None:
    table = fill("Fruit", [COLUMNS[0], MASS.hidden(lambda _: True)], FRUIT)
    assert table.columns == (Heading("fruit"),)
    assert all(len(row.cells) == 1 for row in table.rows)


def test_a_column_of_other_items() -> None:
    column: Column[tuple[int, Fruit]] = MASS.of(lambda pair: pair[1])
    assert column.cell((1, FRUIT[1])).text == "30.0"
    assert column.csv["mass_grams"]((1, FRUIT[1])) == 30
    assert column.paper


def test_a_row_of_texts_that_is_too_short_has_empty_cells() -> None:
    table = Table.of_texts("T", [Heading("a"), Heading("b", "number")], [["x", "1"], ["y"]])
    assert [[cell.text for cell in row.cells] for row in table.rows] == [["x", "1"], ["y", ""]]


def test_latex_finds_no_commands_in_names() -> None:
    assert latex.escaped(r"a_b 5% {x} \y $z^2~#&") == (
        r"a\_b 5\% \{x\} \textbackslash{}y \$z\textasciicircum{}2\textasciitilde{}\#\&"
    )


@pytest.mark.parametrize("wide", ["鱼", "e\u0301"])
def test_the_terminal_counts_cells_and_not_characters(wide: str) -> None:
    table = Table.of_texts("T", [Heading("a"), Heading("b")], [[wide, "x"], ["yy", "x"]])
    lines = terminal.lines(table)
    assert lines[1] == wide + " " * (3 if wide == "e\u0301" else 2) + "x"


RANKED = Table.of_texts(
    "T",
    [Heading("name"), Heading("mean accuracy", "number"), Heading("cost", "number", rank=2), Heading("why", rank=1)],
    [["a method with a long name, too long", "91.5", "100.25", "because"], ["b", "7.0", "3.5", ""]],
)


def test_a_table_takes_no_more_room_than_it_needs() -> None:
    assert terminal.fit(RANKED, 200) == terminal.fit(RANKED)
    assert terminal.fit(RANKED, 65).left_out == ()
    assert terminal.lines(RANKED)[2] == "b                                              7.0     3.5"


def test_headings_and_long_words_are_folded() -> None:
    fitted = terminal.fit(RANKED, 60)
    assert fitted.heading == [
        " " * 39 + "mean",
        "name                               accuracy    cost  why",
    ]
    assert [len(row) for row in fitted.rows] == [2, 1]
    assert fitted.rows[0] == ["a method with a long name, too         91.5  100.25  because", "long"]


@pytest.mark.parametrize(("width", "left_out"), [(48, ("cost",)), (42, ("cost", "why")), (5, ("cost", "why"))])
def test_the_columns_of_the_largest_rank_leave_first(width: int, left_out: tuple[str, ...]) -> None:
    assert terminal.fit(RANKED, width).left_out == left_out


def test_a_word_that_is_longer_than_its_column_is_broken() -> None:
    table = Table.of_texts("T", [Heading("name")], [["x" * 60 + " y"]])
    assert terminal.lines(table, 25) == ["name", "x" * 25, "x" * 25, "x" * 10 + " y"]
    wide = Table.of_texts("T", [Heading("name")], [["漢" * 30]])
    assert terminal.lines(wide, 25) == ["name", "漢" * 12, "漢" * 12, "漢" * 6]


def test_a_column_keeps_its_rank() -> None:
    column = MASS.ranked(3)
    for made in (column.bold(lambda _: True), column.hidden(lambda _: True), column.of(lambda item: item)):
        assert made.heading.rank == 3
    assert fill("T", [column], []).columns[0].rank == 3


def test_json_has_the_names_of_csv_files_and_full_precision() -> None:
    rows = csv_file.rows([*COLUMNS, MASS], FRUIT)
    (header, *_) = csv.reader(io.StringIO(csv_file.text([*COLUMNS, MASS], FRUIT)))
    assert [list(row) for row in rows] == [header] * 3
    assert (rows[0]["sweet_percent"], rows[0]["mass_grams"]) == (81.0, 150.25)
    assert math.isnan(rows[2]["mass_grams"])  # type: ignore[arg-type]
