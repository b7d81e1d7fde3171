"""docs/comparison/ is what benchmarks/comparison.py makes of the finished cells, and says what their answers say."""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from tokenprune.experiment import ExperimentResult, summarise
from tokenprune.experiment.answers import Answers
from tokenprune.output.lines import Row, json_ready
from tokenprune.stats.clustered import difference, share

ROOT = Path(__file__).parents[2]
QUESTIONS = 40
WHOLE = 144
PLAN: dict[str, Any] = {
    "shares": [0.2223, 0.3334],
    "settings": {"batch_size": 16, "max_new_tokens": 2, "calibration": 32},
    "tasks": {
        name: {"model": {"name": name, "dtype": "float32"}, "task": {"name": name, "split": "test", "questions": 40}}
        for name in ("digits", "clips")
    },
    "methods": ["entropyprune"],
    "video": [],
    "own": ["entropyprune", "entropyprune-tower"],
    "null_models": ["diversity", "energy-diversity"],
    "positions": {"share": 0.2223, "methods": ["entropyprune"], "video": []},
}
#: Cell -> method -> how many of the questions it answers right (the first ones), its layer average, what is left.
CELLS: dict[str, dict[str, tuple[int, float, int]]] = {
    "digits-average-22.2": {
        "unpruned": (40, 144, 144),
        "entropyprune": (38, 32, 32),
        "entropyprune-tower": (40, 32, 32),
        "energy-diversity": (20, 32, 32),
        "scope": (39, 32, 32),
        "dear": (40, 60, 32),
        "fastv": (10, 33, 20),
        "random-layer-0": (20, 32, 32),
        "random-layer-2": (21, 33, 20),
        "downsampled": (30, 32, 32),
        "oracle": (40, 32, 32),
    },
    "clips-average-33.3": {
        "unpruned": (40, 144, 144),
        "entropyprune": (20, 48, 48),
        "vidcom2": (36, 48, 48),
        "random-layer-0": (20, 48, 48),
    },
    "digits-kept-22.2": {
        "unpruned": (40, 144, 144),
        "fastv": (25, 72, 32),
        "random-layer-2": (30, 72, 32),
    },
    "digits-positions-22.2": {
        "unpruned": (40, 144, 144),
        "scope": (30, 32, 32),
        "scope-renumbered": (20, 32, 32),
        "divprune": (30, 32, 32),
        "divprune-renumbered": (38, 32, 32),
    },
}


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[ModuleType, ModuleType]]:
    """The scripts, which import each other as they do when they are run."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    yield importlib.import_module("tables"), importlib.import_module("comparison")
    for name in ("tables", "comparison"):
        sys.modules.pop(name, None)


@pytest.fixture
def scripts(
    modules: tuple[ModuleType, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[ModuleType, ModuleType]:
    """The scripts with the made-up cells in a folder of their own."""
    tables, comparison = modules
    monkeypatch.setattr(tables, "KEPT", tmp_path / "kept")
    monkeypatch.setattr(comparison, "ROOT", tmp_path)
    for cell in tables.cells(PLAN):
        if cell.name in CELLS:
            store(tables, cell, made_up(CELLS[cell.name], cell))
    return tables, comparison


def made_up(methods: Mapping[str, tuple[int, float, int]], cell: Any) -> ExperimentResult:
    """An experiment with known answers, every question about a picture of its own."""
    budget = f"{'keep_ratio' if cell.axis == 'kept' else 'layer_average'} {cell.share}"

    def rows() -> Iterator[Row]:
        for name, (right, average, visual) in methods.items():
            for position in range(QUESTIONS):
                own = None if name == "unpruned" else budget
                yield {
                    "series": name if own is None else f"{name} / {budget}",
                    "method": name,
                    "budget": own,
                    "seed": None,
                    "position": position,
                    "type": "t",
                    "group": str(position),
                    "answer": "yes",
                    "prediction": "yes" if position < right else "no",
                    "score": float(position < right),
                    "visual_before": WHOLE,
                    "visual_after": visual,
                    "layer_average": average,
                    "flops": average,
                    "flops_unpruned": WHOLE,
                    "kv_bytes": 1,
                }

    promise = {"agreement": 1.0, "corrected": 0.9, "low": 0.8, "high": 0.95, "samples": 32, "candidates": 24}
    reason = "verified without labels: layer 0, quality_dpp agrees with the unpruned model on 100 % of it"
    choices: Any = {f"entropyprune / {budget}": {"layers": [0], "reason": reason, "promise": promise}}
    return ExperimentResult("", Answers.read(rows()), choices=choices)


def store(tables: ModuleType, cell: Any, result: ExperimentResult) -> None:
    """Write the files of a finished cell that the page reads."""
    cell.folder.mkdir(parents=True)
    versions = {"tokenprune": "1", "torch": "2", "transformers": "5", "device": "a CPU"}
    for name, data in {
        "summary.json": json_ready([asdict(item) for item in summarise(result)]),
        "pairs.json": tables.pairs(result, None if cell.axis == "kept" else cell.share),
        "choices.json": json_ready(result.choices),
        "cannot.json": {"clse": "no room for its first layers"},
        "environment.json": versions,
        "plan.json": cell.settings,
    }.items():
        (cell.folder / name).write_text(json.dumps(data), encoding="utf-8")


def page(scripts: tuple[ModuleType, ModuleType], name: str = "index") -> str:
    """A page of the made-up cells: the index, or that of a task."""
    tables, comparison = scripts
    return str(comparison.Page(tables.cells(PLAN)).texts()[f"comparison/{name}.md"])


def table(text: str, heading: str) -> list[dict[str, str]]:
    """The rows of the first table below a heading; of a link to a method's page, its words."""
    text = re.sub(r"\[([\w-]+)\]\(\.\./methods/\1\.md\)", r"\1", text)
    after = text.partition(f"{heading}\n")[2].splitlines()
    start = next(number for number, line in enumerate(after) if line.startswith("|"))
    end = next((number for number, line in enumerate(after[start:], start) if not line.startswith("|")), len(after))
    titles, _, *rows = ([cell.strip() for cell in line.strip("|").split(" | ")] for line in after[start:end])
    return [dict(zip(titles, row, strict=True)) for row in rows]


def right(count: int) -> list[float]:
    """The scores of a method that answers the first questions right."""
    return [float(position < count) for position in range(QUESTIONS)]


def minus(first: int, second: int) -> str:
    """The paired difference of two such methods, in points."""
    scores = zip(right(first), right(second), strict=True)
    return difference([mine - other for mine, other in scores]).written(signed=True)


def test_what_is_missing_stands_in_one_line_at_the_top(scripts: tuple[ModuleType, ModuleType]) -> None:
    (line,) = [line for line in page(scripts).splitlines() if line.startswith("**Not measured yet:**")]
    names = ("digits-average-33.3", "clips-average-22.2", "digits-kept-33.3", "clips-kept-22.2", "clips-kept-33.3")
    names += ("clips-positions-22.2",)
    assert all(f"`{name}`" in line for name in names)
    assert line.count("`") == 2 * len(names)


def test_the_best_method_and_those_that_are_not_distinguishable_from_it(scripts: tuple[ModuleType, ModuleType]) -> None:
    """The dear method costs more than the budget, the oracle and smaller pictures are references: none can be best."""
    (row,) = table(page(scripts, "digits"), "## The best methods")
    assert (row["tokens %"], row["best"]) == ("22.2", "`entropyprune-tower`")
    assert "task" not in row, "the page has one task"
    assert row["its %"] == str(share(right(40)))
    assert row["as good"] == "2"
    assert "Not distinguishable from the best:\n\n- at 22.2 %: `scope`, `entropyprune`\n" in page(scripts, "digits")
    assert row["random, its %"] == str(share(right(20)))
    assert row["smaller pictures %"] == str(share(right(30)))
    large, small = table(page(scripts), "## Which method, at which budget")
    assert [large[name] for name in large] == ["33.3", "", "`vidcom2`", ""]
    assert [small[name] for name in small] == ["22.2", "", "", ""], "easy-VQA and clips are missing"
    (row,) = table(page(scripts, "clips"), "## The best methods")
    assert (row["best"], row["% of unpruned"], row["as good"]) == ("`vidcom2`", "90.0", "0")
    assert "- at 33.3 %: none\n" in page(scripts, "clips")


def test_random_wins_in_bold_at_equal_cost(scripts: tuple[ModuleType, ModuleType]) -> None:
    text = page(scripts)
    clips, digits = sorted(table(text, "## Where random wins"), key=lambda row: row["task"])
    assert digits["random wins against"] == f"**`fastv`** {minus(10, 21)}"
    assert digits["no better than random"] == "`energy-diversity`"
    assert (clips["random wins against"], clips["no better than random"]) == ("none", "`entropyprune`")
    rows = {row["method"]: row["22.2 %"] for row in table(page(scripts, "digits"), "### Equal layer averages")}
    assert rows["fastv"] == f"**{share(right(10))}**"
    assert rows["scope"] == str(share(right(39)))
    assert rows["dear"] == f"{share(right(40))} (41.7)"
    assert "no random choice costs the same: Digits at 22.2 %: `dear`." in text
    assert "- `clse` at 22.2 %: no room for its first layers" in page(scripts, "digits")


def test_verdicts_on_entropyprune(scripts: tuple[ModuleType, ModuleType]) -> None:
    text = page(scripts)
    assert "Above random at equal cost beyond the interval: 1 of 2." in text
    assert "Not below the best rival beyond the interval: 1 of 2." in text
    assert "0 of 2 met. Only 2 of the nine cells have been measured." in text
    digits, clips = table(text, "### The nine cells")
    assert (digits["accuracy %"], digits["% of unpruned"]) == (str(share(right(38))), "95.0")
    assert (digits["minus random"], digits["above random"]) == (minus(38, 20), "yes")
    assert (digits["rival"], digits["minus rival"], digits["below the rival"]) == ("`scope`", minus(38, 39), "no")
    assert digits["goal"] == "**96 %: missed**"
    assert (clips["minus random"], clips["above random"]) == (minus(20, 20), "**no**")
    assert (clips["rival"], clips["minus rival"], clips["below the rival"]) == ("`vidcom2`", minus(20, 36), "**yes**")
    assert clips["goal"] == "**92 %: missed**"


def test_promises_and_null_models(scripts: tuple[ModuleType, ModuleType]) -> None:
    (digits,) = table(page(scripts, "digits"), "### What the verification promised")
    assert (digits["promised %"], digits["candidates"], digits["samples"]) == ("100.0", "24", "32")
    assert digits["corrected %"] == "90 [80, 95]"
    assert digits["kept %"] == str(share(right(38)))
    assert digits["chose"] == "layer 0, quality_dpp"
    (digits,), (clips,) = (table(page(scripts, name), "### The null models") for name in ("digits", "clips"))
    assert digits["`energy-diversity` %"] == f"{share(right(20))} ({minus(38, 20)})"
    assert "`energy-diversity` %" not in clips, "no cell of the task has it"


def test_kept_tokens_have_their_layer_average_and_hard_questions_their_number(
    scripts: tuple[ModuleType, ModuleType],
) -> None:
    text = page(scripts, "digits")
    rows = {row["method"]: row["22.2 %"] for row in table(text, "### Equal kept tokens")}
    assert rows["fastv"] == f"**{share(right(25))} (50.0)**"
    rows = {row["method"]: row["22.2 %"] for row in table(text, "### Hard questions")}
    assert rows["*downsampled*"] == "10 questions"
    assert rows["scope"] == str(share([1.0] * 9 + [0.0]))
    assert "### Hard questions" not in page(scripts, "clips")


def test_positions_are_compared_within_their_cell(scripts: tuple[ModuleType, ModuleType]) -> None:
    divprune, scope = table(page(scripts), "## Positions")
    accuracy = share(right(30))
    assert divprune == {"method": "divprune", "Digits %": f"**{accuracy} ({minus(38, 30)})**"}
    assert scope == {"method": "scope", "Digits %": f"{accuracy} ({minus(20, 30)})"}


def test_a_cell_of_positions_has_every_method_twice(modules: tuple[ModuleType, ModuleType]) -> None:
    own = {"name": "hiprune", "pruner": {"name": "hiprune", "object_layer": 2}}
    plan = {**PLAN, "methods": ["dart", own], "video": ["dycoke"]}
    plan["positions"] = {"share": 0.1, "methods": ["hiprune"], "video": ["dycoke"]}
    digits, clips = (cell for cell in modules[0].cells(plan) if cell.axis == "positions")
    renumbered = {**own, "positions": "renumbered", "label": "hiprune-renumbered"}
    assert digits.entries == [own, renumbered]
    assert clips.entries[:2] == digits.entries
    assert clips.entries[2:] == ["dycoke", {"name": "dycoke", "positions": "renumbered", "label": "dycoke-renumbered"}]


def test_every_cell_has_its_report(scripts: tuple[ModuleType, ModuleType]) -> None:
    tables, comparison = scripts
    texts = comparison.Page(tables.cells(PLAN)).texts()
    rows = table(texts["reports/index.md"], "# The report of every cell")
    for row in rows:
        name = row["report"].partition("]")[0].lstrip("[")
        assert row["report"] == f"[{name}]({name}.md)"
        equal = next(words for axis, words in comparison.TITLES.items() if f"-{axis}-" in name)
        title = f"# {row['task']} at {row['tokens %']} %: {equal}\n"
        assert title in texts[f"reports/{name}.md"]
        assert texts[f"reports/{name}.md"].endswith(f'\n--8<-- "kept/{name}/report.md:3"\n')
        assert row["questions"] == row["pictures or clips"] == "40"
    assert len(rows) == len([name for name in texts if name.startswith("reports/")]) - 1 > 3
    assert "[The report of every cell](../reports/index.md)" in page(scripts)


def test_a_cell_with_other_settings_is_not_on_the_page(scripts: tuple[ModuleType, ModuleType]) -> None:
    tables, comparison = scripts
    other = comparison.Page(tables.cells({**PLAN, "settings": {**PLAN["settings"], "batch_size": 8}}))
    assert other.results == []
    assert "**Not measured yet: all 10 cells.**" in other.texts()["comparison/index.md"]
    assert other.texts().keys() == {"comparison/index.md", "reports/index.md"}, "no task has a page"
    assert "No cell has been measured yet." in other.texts()["reports/index.md"]


@pytest.mark.usefixtures("toy_installed")
def test_making_a_cell_leaves_what_the_page_reads(
    modules: tuple[ModuleType, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables, comparison = modules
    for name, folder in {"ROOT": tmp_path, "WORK": tmp_path / "results", "KEPT": tmp_path / "kept"}.items():
        monkeypatch.setattr(tables, name, folder)
    monkeypatch.chdir(tmp_path)
    chance = {"name": "random", "label": "random-layer-0", "layers": {"name": "fixed", "layers": [0]}, "seeds": [0, 1]}
    settings = {"batch_size": 8, "max_new_tokens": 2, "calibration": 0, "timing": 0, "oracle": False, "examples": 0}
    methods = ["divprune", "norm-hidden-large", chance]
    plan = {**PLAN, "tasks": {"digits": {"model": "toy", "task": "toy"}}, "settings": settings, "methods": methods}
    cell = next(cell for cell in tables.cells(plan) if cell.name == "digits-average-33.3")
    cell.make()
    assert cell.finished
    result = comparison.Result(cell)
    pairs = result.pairs
    assert (pairs["questions"], pairs["pictures"], pairs["target"]) == (24, 12, pytest.approx(0.3334 * 16))
    assert set(pairs["methods"]) == {"divprune", "random-layer-0"}, "norm-hidden-large cannot meet a third from layer 2"
    gain = result.methods["divprune"].minus("random")
    assert gain.mean == pytest.approx(
        result.methods["divprune"].accuracy.mean - result.methods["random-layer-0"].accuracy.mean
    )
    (cell.folder / "pairs.json").unlink()
    assert not cell.finished, "a cell of an earlier version is made again, from the answers that are there"


def test_methods_with_the_same_reason_are_left_out_in_one_line(
    scripts: tuple[ModuleType, ModuleType],
) -> None:
    tables, comparison = scripts
    why = "a layer average of 4.5 tokens cannot\n be met: 9 are there"
    for cell in tables.cells(PLAN):
        if cell.finished and cell.task == "digits":
            (cell.folder / "cannot.json").write_text(json.dumps({"dart": why, "apet": why, "clse": "no room"}))
    found = comparison.Page(tables.cells(PLAN)).every("digits")
    rows = ["- `apet`, `dart` at 22.2 %: 9 are there", "- `clse` at 22.2 %: no room"]
    assert comparison.unable(found).split("\n") == ["Left out, as they cannot meet the budget:", "", *rows, ""]


def test_every_task_has_a_page_that_the_index_names(scripts: tuple[ModuleType, ModuleType]) -> None:
    tables, comparison = scripts
    texts = comparison.Page(tables.cells(PLAN)).texts()
    compared = {name for name in texts if not name.startswith("reports/")}
    assert compared == {"comparison/index.md", "comparison/digits.md", "comparison/clips.md"}
    assert "A page per task has every method, with intervals: [Digits](digits.md), [Clips](clips.md)." in page(scripts)
    assert "Every method on 40 questions about 40 clips, with one model:" in page(scripts, "clips")
    assert "[vidcom2](../methods/vidcom2.md)" in page(scripts, "clips")
    assert "vidcom2" not in page(scripts, "digits"), "a method of the clips alone"
    assert "| unpruned |" in page(scripts, "digits"), "no page is about it"


def test_the_committed_pages_are_what_the_script_writes(
    modules: tuple[ModuleType, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    docs = ROOT / "docs"
    for part in ("comparison", "reports"):
        (tmp_path / part).mkdir()
        (tmp_path / part / "gone.md").write_text("a task or a cell that is gone", encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["comparison.py", "--output", str(tmp_path)])
    modules[1].main()
    written = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.md")}
    assert written == {
        str(path.relative_to(docs)) for part in ("comparison", "reports") for path in (docs / part).iterdir()
    }
    for name in written:
        same = (tmp_path / name).read_text(encoding="utf-8") == (docs / name).read_text(encoding="utf-8")
        assert same, f"docs/{name} is not what the cells say: run `make comparison`"


def test_the_plan_names_what_is_no_rival() -> None:
    plan = yaml.safe_load((ROOT / "benchmarks" / "tables.yaml").read_text(encoding="utf-8"))
    assert {*plan["own"], *plan["null_models"]} <= {name for name in plan["methods"] if isinstance(name, str)}
