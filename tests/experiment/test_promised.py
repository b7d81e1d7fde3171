"""What a verification promised stands beside what the method kept; and how the cells of `make tables` are made."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.toy import config
from tokenprune.experiment import run_experiment
from tokenprune.experiment.report import markdown
from tokenprune.experiment.report_data import ReportData
from tokenprune.experiment.tables import further_tables

pytestmark = pytest.mark.usefixtures("toy_installed")

ROOT = Path(__file__).parents[2]
BUDGETS = [{"name": "keep_count", "tokens": 3}]


def test_the_promise_stands_beside_what_was_kept(tmp_path: Path) -> None:
    experiment = config(
        str(tmp_path / "out"), methods=["random", "entropyprune"], budgets=BUDGETS, calibration=6, oracle=False
    )
    result = run_experiment(experiment)
    data = ReportData.of(result)
    (promised,) = data.promised
    choice = result.choices["entropyprune / keep_count 3"]
    assert promised.promise.model_dump() == choice["promise"]
    assert promised.summary.method == "entropyprune"
    (table,) = [table for table in further_tables(data) if table.title == "Promised and kept"]
    (row,) = table.rows
    texts = [cell.text for cell in row.cells]
    assert texts[:2] == ["entropyprune", "keep_count 3"]
    assert texts[2] == f"{100 * choice['promise']['agreement']:.1f}"
    agreement = promised.summary.agreement
    assert agreement is not None
    assert f"{100 * agreement.mean:.0f}" in texts[4]
    assert texts[5:] == [str(choice["promise"]["candidates"]), "6"]
    assert "Promised and kept:" in markdown(result)


def test_without_a_verification_there_is_no_such_table(tmp_path: Path) -> None:
    result = run_experiment(config(str(tmp_path / "out"), methods=["random", "fastv"], budgets=BUDGETS, oracle=False))
    assert ReportData.of(result).promised == []
    assert "Promised and kept" not in markdown(result)


# ---- make tables -------------------------------------------------------------------------------------------------


@pytest.fixture
def tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script, with the toy's task and folders of the test."""
    spec = importlib.util.spec_from_file_location("benchmarks_tables", ROOT / "benchmarks" / "tables.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "benchmarks_tables", script)  # its data classes look their module up
    spec.loader.exec_module(script)
    monkeypatch.setattr(script, "ROOT", tmp_path)
    monkeypatch.setattr(script, "WORK", tmp_path / "results" / "tables")
    monkeypatch.setattr(script, "KEPT", tmp_path / "kept")
    monkeypatch.chdir(tmp_path)
    return script


PLAN: dict[str, Any] = {
    "shares": [0.5, 0.1],
    "settings": {"batch_size": 4, "max_new_tokens": 1, "calibration": 4, "timing": 0, "oracle": False, "examples": 0},
    "tasks": {"toy": {"model": {"name": "toy"}, "task": {"name": "toy"}}},
    "methods": ["fastv", "divprune", {"name": "random", "layers": {"name": "fixed", "layers": [0]}}],
    "video": ["evs"],
}


def test_a_cell_has_the_methods_that_can_meet_it(tables: Any) -> None:
    """FastV acts at layer 2 of four: a tenth of the tokens is less than that costs. `kept` has it alone, and random."""
    found = {cell.name: cell for cell in tables.cells(PLAN)}
    assert list(found) == ["toy-average-50.0", "toy-average-10.0", "toy-kept-50.0", "toy-kept-10.0"]
    entries, cannot = found["toy-average-10.0"].possible()
    assert entries == PLAN["methods"][1:]
    assert list(cannot) == ["fastv"]
    assert "cannot be met" in cannot["fastv"]
    assert found["toy-kept-10.0"].possible() == ([PLAN["methods"][0], PLAN["methods"][2]], {})


def test_a_finished_cell_is_kept_until_its_settings_change(tables: Any) -> None:
    plan = {**PLAN, "methods": PLAN["methods"][1:]}
    (cell, *_) = tables.cells(plan)
    assert not cell.finished
    cell.make()
    assert cell.finished
    folder = tables.KEPT / cell.name
    assert json.loads((folder / "cannot.json").read_text()) == {}
    assert {row["method"] for row in json.loads((folder / "summary.json").read_text())} >= {"unpruned", "divprune"}
    assert (folder / "report.md").is_file()
    (other, *_) = tables.cells({**plan, "settings": {**plan["settings"], "batch_size": 2}})
    assert not other.finished


def test_the_plan_names_methods_that_exist() -> None:
    import yaml

    from tokenprune import list_methods

    plan = yaml.safe_load((ROOT / "benchmarks" / "tables.yaml").read_text(encoding="utf-8"))
    names = {entry if isinstance(entry, str) else entry["name"] for entry in [*plan["methods"], *plan["video"]]}
    ours = {method.name for method in list_methods() if method.distribution == "tokenprune-mllm"}
    left_out = {name for name in ours if name.startswith("norm-") and name not in names} | {"vtw"}  # a table of its own
    assert names | left_out == ours | {"downsampled"}
