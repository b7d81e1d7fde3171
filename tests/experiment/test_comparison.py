"""Several results side by side: rows that belong together, differences paired by question, settings that differ."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.toy import ToyTask, completed
from tokenprune.errors import ConfigError, OutputError
from tokenprune.experiment.comparison import (
    compare,
    differing,
    markdown,
    same_questions,
    short_names,
    table,
    write_comparison,
)
from tokenprune.experiment.folder import read_result
from tokenprune.experiment.result import ExperimentResult
from tokenprune.stats import clustered

pytestmark = pytest.mark.usefixtures("toy_installed")


@pytest.mark.parametrize(
    ("folders", "names"),
    [
        (["x/a", "x/b"], ["a", "b"]),
        (["x/run", "y/run"], ["x/run", "y/run"]),
        (["x/run", "y/run", "y/other"], ["x/run", "y/run", "y/other"]),
    ],
)
def test_names_are_as_short_as_they_can_be(folders: list[str], names: list[str]) -> None:
    assert short_names(folders) == names


def test_a_folder_that_is_named_twice() -> None:
    with pytest.raises(ConfigError, match="the folder 'a' is named twice"):
        short_names(["x/a", "x/../x/a"])


def ran(folder: Path, **changes: object) -> ExperimentResult:
    completed(folder, **changes)
    return read_result(folder)


def test_rows_of_one_method_stand_together_and_differences_are_paired(tmp_path: Path) -> None:
    first = ran(tmp_path / "first")
    second = ran(tmp_path / "second", max_new_tokens=1, methods=["random"])
    compared = compare([first, second])
    found = table(compared)
    titles = [heading.title for heading in found.columns]
    rows = [[cell.text for cell in row.cells] for row in found.rows]
    assert titles[:3] == ["results", "method", "budget"]
    assert titles[-1] == "minus first"
    both = [row for row in rows if row[1] == "oracle" and row[2] == "keep_count 2"]
    assert [row[0] for row in both] == ["first", "second"]
    mine, other = (one.answers.of("oracle", "keep_count 2").by_question() for one in (second, first))
    gain = clustered.difference(
        [mine[at] - other[at] for at in mine], [first.answers.questions.groups[at] for at in mine]
    )
    assert [row[-1] for row in both] == ["", gain.written(signed=True)]
    assert [[cell.text for cell in row.cells] for row in differing(compared).rows] == [["max_new_tokens", "2", "1"]]
    text = markdown(compared)
    assert "| max_new_tokens | 2 | 1 |" in text
    assert "paired by question" in text
    lone = [row for row in rows if row[1] == "norm-hidden-large"]
    assert {row[0] for row in lone} == {"first"}


@pytest.mark.slow
def test_other_questions_are_not_paired(tmp_path: Path) -> None:
    compared = compare([ran(tmp_path / "a"), ran(tmp_path / "b", task=ToyTask(split="train"))])
    assert not same_questions(*compared)
    assert "minus a" not in [heading.title for heading in table(compared).columns]
    assert "| task.split |" in markdown(compared)


def test_a_report_of_one_of_the_folders_is_not_overwritten(tmp_path: Path) -> None:
    compared = compare([ran(tmp_path / "first", methods=["random"]), ran(tmp_path / "second", methods=["random"])])
    with pytest.raises(OutputError, match="is one of the folders that are compared: its own report would be lost"):
        write_comparison(compared, tmp_path / "x" / ".." / "second")
    assert not (tmp_path / "second" / "report.md").exists()


@pytest.mark.slow
def test_bars_in_names_of_folders_break_no_table(tmp_path: Path) -> None:
    compared = compare(
        [ran(tmp_path / "a|b", methods=["random"]), ran(tmp_path / "c", methods=["random"], batch_size=4)]
    )
    lines = [line.replace(r"\|", "") for line in markdown(compared).splitlines() if line.startswith("|")]
    for start in ("| results", "| setting"):
        first = next(number for number, line in enumerate(lines) if line.startswith(start))
        assert lines[first].count("|") == lines[first + 1].count("|") == lines[first + 2].count("|")
