"""JSON files: lists of objects, lists inside an object, and what only one of several readings fits."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from tokenprune.datasets.json_file import JsonLines, JsonList, find_layout
from tokenprune.datasets.open import open_table
from tokenprune.errors import ConfigError, SampleError

ROWS: list[dict[str, Any]] = [
    {"image": "ü.png", "question": 'brackets ]}{[ , and \\ "quotes"'},
    {"image": "b.png", "answer": {"a": [1, [2], {}]}, "choices": []},
    {"question": "日本", "score": -1.5e3, "flag": None},
]


def written(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("bom", ["", "\ufeff"])
@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("ascii_only", [True, False])
@pytest.mark.parametrize("wrap", [lambda rows: rows, lambda rows: {"info": {"list": [{}]}, "data": rows, "n": [1]}])
def test_a_list_of_objects(tmp_path: Path, bom: str, indent: int | None, ascii_only: bool, wrap: Any) -> None:
    text = bom + json.dumps(wrap(ROWS), indent=indent, ensure_ascii=ascii_only)
    table = open_table(written(tmp_path / "q.json", text))
    assert isinstance(table, JsonList)
    assert table.columns == ("image", "question", "answer", "choices", "score", "flag")
    assert [table.row(index) for index in (2, 0, 1)] == [ROWS[2], ROWS[0], ROWS[1]]
    assert list(table.values("image")) == ["ü.png", "b.png", None]
    assert (table.where(2), table.row_id(2), table.folder) == (f"{tmp_path}/q.json, row 3", "row-3", tmp_path)


@pytest.mark.parametrize("rows", [ROWS, ROWS[:1]])
def test_json_lines_under_the_name_of_json(tmp_path: Path, rows: list[Any]) -> None:
    table = open_table(written(tmp_path / "q.json", "\n".join(map(json.dumps, rows))))
    assert isinstance(table, JsonLines)
    assert [table.row(index) for index in range(len(table))] == rows


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "has no questions"),
        (" \n", "has no questions"),
        ("[]", "has no questions"),
        ('[{"image": "a"}, {"image"', "is cut short: a bracket or a quote is not closed; write it again"),
        ('[{"image": "a}]', "is cut short"),
        ('{"images": [{"id": 1}], "annotations": [{"id": 2}]}', "holds several lists of objects ('images', 'annotatio"),
        ('{\n"1": {"image": "a"}, "2": {"image": "b"}\n}', "holds no list of objects; write a list of objects, or one"),
        ('"a text"', "holds no list of objects"),
        ("[1, 2]", "holds no object with names"),
        ("a.png\nb.png", "no line of"),
    ],
)
def test_files_without_one_reading(tmp_path: Path, text: str, what: str) -> None:
    with pytest.raises(ConfigError) as caught:
        open_table(written(tmp_path / "q.json", text))
    assert what in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("element", ["5", "null", '"text"', "[1]", '{"image": }', "{'image': 'a'}"])
def test_a_broken_element_is_its_own_error(tmp_path: Path, element: str) -> None:
    table = open_table(written(tmp_path / "q.json", f'[{{"image": "a"}}, {element} , {{"image": "c"}}]'))
    assert len(table) == 3
    with pytest.raises(SampleError, match=r"q.json, row 2: broken JSON \(.+\); write a list of objects"):
        table.row(1)
    assert list(table.values("image")) == ["a", None, "c"]


@pytest.mark.slow
def test_memory_is_that_of_the_places(tmp_path: Path) -> None:
    """Two numbers for each of 20,000 objects."""
    rows = [{"id": str(number), "question": "x" * 200} for number in range(20_000)]
    path = Path(written(tmp_path / "q.json", json.dumps(rows)))
    find_layout(path)
    tracemalloc.start()
    try:
        table = open_table(str(path))
        assert table.row(12_345)["id"] == "12345"
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held / len(rows) < 20
    assert peak / len(rows) < 48
