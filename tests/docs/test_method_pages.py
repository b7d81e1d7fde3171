"""docs/methods/ is what benchmarks/method_pages.py makes of the methods and the committed results."""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from tokenprune.core import plugins
from tokenprune.methods.named import list_methods, load_method

ROOT = Path(__file__).parents[2]
PAGES = ROOT / "docs" / "methods"


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The module, which the tests that load other plans do not see."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    yield importlib.import_module("method_pages")
    for name in ("method_pages", "pictures", "comparison", "tables"):
        sys.modules.pop(name, None)


def names() -> list[str]:
    """The methods that this distribution ships."""
    with plugins.builtin_only():
        return [named.name for named in list_methods()]


def text(name: str) -> str:
    """A committed page."""
    return (PAGES / f"{name}.md").read_text(encoding="utf-8")


def part(name: str, heading: str) -> str:
    """What stands below a heading."""
    return text(name).split(f"## {heading}\n")[1].split("\n## ")[0]


def test_the_committed_pages_are_what_the_script_writes(
    scripts: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gone.md").write_text("the page of a method that is gone", encoding="utf-8")
    scripts.main(tmp_path)
    written, committed = (
        {file.name: file.read_text(encoding="utf-8") for file in folder.iterdir()} for folder in (tmp_path, PAGES)
    )
    assert written.keys() == committed.keys(), "run `make methods`"
    for name, page in written.items():
        assert page == committed[name], f"docs/methods/{name} is not what the method says: run `make methods`"


def test_every_named_method_has_a_page_and_one_line_of_the_index() -> None:
    assert {file.stem for file in PAGES.iterdir()} == {*names(), "index"}
    assert sorted(re.findall(r"^- \[([\w-]+)\]\(\1\.md\): \S", text("index"), re.M)) == sorted(names())


def test_every_page_has_what_a_reader_asks_for() -> None:
    for name in names():
        headings = re.findall(r"^## (.*)$", text(name), re.M)
        assert [heading for heading in headings if heading != "Published settings"] == [
            "Defaults",
            "Model families",
            "Checked against",
            "Results",
            "In detail",
        ], name
        assert re.search(
            r"^- Paper: (\[.*\]\(https://arxiv\.org/abs/\d+\.\d+\)|none, a baseline)$", text(name), re.M
        ), name
        start = text(name).split("\n\n")[1]
        assert re.search(r"\. It acts .*, and reads .*\.$", start), name


def test_the_yaml_of_a_page_is_the_method() -> None:
    """Without its label, which is its name."""
    for name in names():
        (block,) = re.findall(r"^```yaml\n(.*?)^```$", part(name, "Defaults"), re.M | re.S)
        assert block == load_method(name).to_yaml().replace(f"label: {name}\n", ""), name


def test_groups_say_where_methods_prune(scripts: ModuleType) -> None:
    found = {}
    for section in text("index").split("\n## ")[1:]:
        title = section.partition("\n")[0]
        found |= dict.fromkeys(re.findall(r"^- \[([\w-]+)\]", section, re.M), title)
    own, before, once, steps, videos, baselines = scripts.GROUPS
    assert set(found.values()) == set(scripts.GROUPS)
    wanted = {
        "entropyprune": own,
        "visionzip": before,
        "fastv": once,
        "vtw": once,
        "vscan": steps,
        "framefusion": videos,
        "random": baselines,
    }
    assert {name: found[name] for name in wanted} == wanted


def test_results_are_those_of_the_cells() -> None:
    """One figure, looked up without the script; and what could not be measured."""
    (row,) = re.findall(r"^\| easy-VQA \| .*$", part("visionzip", "Results"), re.M)
    cell = ROOT / "benchmarks" / "results" / "tables" / "easy-vqa-average-11.1" / "summary.json"
    (found,) = [one for one in json.loads(cell.read_text(encoding="utf-8")) if one["method"] == "visionzip"]
    assert row.split(" | ")[3].startswith(f"{100 * found['accuracy']['mean']:.1f} ")
    assert "`fastv` is left out where it cannot meet the budget" in part("fastv", "Results")
    assert "**" in part("fastv", "Results").split("Equal layer average")[1]
    assert "**" not in part("visionzip", "Results").split("Equal layer average")[1]
    assert "nothing was measured" in part("norm-key-large", "Results")
    assert "object_layer: 2" in part("hiprune", "Results")


def test_families_are_those_of_the_table() -> None:
    assert "It ran on all 14 that were tried" in part("fastv", "Model families")
    evs = part("evs", "Model families")
    assert "It ran on 11 of 14" in evs
    assert "No: `llava_next`. Video only: `llava_onevision`, `llava_next_video`." in evs
    assert part("norm-key-small", "Model families") == part("norm-query-small", "Model families")
    assert "not tried" in part("oracle", "Model families")


def test_pictures_are_there() -> None:
    shown = {name: re.findall(r"!\[.*\]\((.*)\)", text(name)) for name in names()}
    assert {name for name, files in shown.items() if files} == {"entropyprune", "visionzip", "fastv", "random", "vscan"}
    assert all((PAGES / file).is_file() for files in shown.values() for file in files)
