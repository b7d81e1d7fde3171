"""The main table: every column is in every rendering; committed reports are what the code writes."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from tests.support.summaries import around, summary, unpruned
from tokenprune.experiment.paper_table import csv_table
from tokenprune.experiment.tables import COLUMNS, main_table

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_every_column_has_text_and_numbers() -> None:
    measured = {"divergence": around(0.2, 0.1), "hard": around(0.3, 0.2), "hard_count": 20}
    rows = [unpruned(), summary("fastv", **measured), summary("tome", label_free=True)]
    assert {heading.title for heading in main_table(rows).columns} == {column.title for column in COLUMNS} - {"seeds"}
    header = csv_table({"": rows}).splitlines()[0].split(",")
    assert header == ["results", *dict.fromkeys(name for column in COLUMNS for name in column.csv)]


def test_the_unpruned_model_is_not_compared_with_itself() -> None:
    table = main_table([unpruned(), summary("fastv")])
    texts = dict(zip((heading.title for heading in table.columns), table.rows[0].cells, strict=True))
    assert [title for title, cell in texts.items() if not cell.text] == [
        "budget",
        "minus unpruned",
        "same answer %",
        "FLOPs",
    ]
    assert texts["prefill time"].text == "1"


def test_committed_reports_are_what_the_code_writes() -> None:
    spec = importlib.util.spec_from_file_location("render_results", BENCHMARKS / "render_results.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    found = script.renderings()
    reports = list((BENCHMARKS / "results").rglob("summary.json"))
    assert len({path.parent.name for path in reports}) == len(reports) >= 12
    for path in reports:
        assert found[f"{path.parent.name}.md"] == path.with_name("report.md").read_text(encoding="utf-8"), path
    speed = [name for name in found if name.startswith("speed-")]
    assert len(speed) >= 5
