"""Tables: every format, line numbers, and memory."""

from __future__ import annotations

import csv
import json
import random
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tokenprune.core.optional import optional
from tokenprune.datasets.columns import check_unique
from tokenprune.datasets.csv_file import read_row
from tokenprune.datasets.media import source
from tokenprune.datasets.open import open_table
from tokenprune.errors import ConfigError, MissingDataError, SampleError


def write(path: Path, text: str, encoding: str = "utf-8") -> str:
    path.write_bytes(text.encode(encoding))
    return str(path)


@pytest.mark.parametrize("bom", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_jsonl(tmp_path: Path, bom: str, end: str) -> None:
    """Empty lines count as lines; the last one needs no line break; any row is read without the others."""
    rows = [{"image": "ü.png"}, {"image": "b.png", "answer": "日本\nx"}]
    lines = ["", json.dumps(rows[0], ensure_ascii=False), "  ", json.dumps(rows[1], ensure_ascii=False)]
    table = open_table(write(tmp_path / "q.jsonl", bom + end.join(lines)))
    assert table.columns == ("image", "answer")
    assert [table.row(index) for index in (1, 0)] == rows[::-1]
    assert table.where(1) == f"{tmp_path}/q.jsonl, line 4"
    assert list(table.values("answer")) == [None, "日本\nx"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"image": ', "Expecting value"),
        (b"[1]", "a JSON list, not an object"),
        (b'{"image": "\xff"}', "codec can't decode"),
        (b"[" * 100_000, "nested too deeply|recursion|Expecting value"),
    ],
)
def test_a_broken_line_is_its_own_error(tmp_path: Path, line: bytes, reason: str) -> None:
    path = tmp_path / "q.jsonl"
    path.write_bytes(b'{"image": "a"}\n' + line + b'\n{"image": "c"}\n')
    table = open_table(str(path))
    assert len(table) == 3
    with pytest.raises(SampleError, match=rf"q.jsonl, line 2: broken JSON \(.*({reason}).*\); write one JSON object"):
        table.row(1)
    assert list(table.values("image")) == ["a", None, "c"]


@pytest.mark.parametrize("bom", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_csv(tmp_path: Path, bom: str, end: str) -> None:
    """Line breaks and separators inside quotes; the line number is that of the row's first line."""
    lines = ["image,question", '"ü.png","What, or', '""who""?"', "", "b.png,日本"]
    table = open_table(write(tmp_path / "q.csv", bom + end.join(lines)))
    assert table.columns == ("image", "question")
    assert len(table) == 2
    assert table.row(1) == {"image": "b.png", "question": "日本"}
    assert table.row(0) == {"image": "ü.png", "question": f'What, or{end}"who"?'}
    assert [table.number(index) for index in range(2)] == [2, 5]
    assert list(table.values("image")) == ["ü.png", "b.png"]


@pytest.mark.parametrize(("name", "separator"), [("q.csv", ";"), ("q.tsv", "\t")])
def test_other_separators(tmp_path: Path, name: str, separator: str) -> None:
    table = open_table(write(tmp_path / name, f"image{separator}answers\na.png{separator}x, y|z\n"))
    assert table.row(0) == {"image": "a.png", "answers": "x, y|z"}
    assert table.items("x, y|z") == ["x, y", "z"]
    assert table.items("x||z|") == ["x", "", "z", ""], "what is missing keeps its place"
    assert table.items("") == []


def test_rows_that_are_no_csv(tmp_path: Path) -> None:
    table = open_table(write(tmp_path / "q.csv", "image,question\na.png,b,c\nb.png,x\n"))
    with pytest.raises(SampleError, match=r"q.csv, line 2: 3 cells, but 2 columns; put a cell"):
        table.row(0)
    assert table.row(1)["question"] == "x"
    table = open_table(write(tmp_path / "q.csv", "image,question\nä.png,b\nb.png,x\n", "latin-1"))
    with pytest.raises(SampleError, match=r"q.csv, line 2: not UTF-8 .*; save the file as UTF-8"):
        table.row(0)
    assert table.row(1)["image"] == "b.png"
    with pytest.raises(ConfigError, match=r"q.csv, line 3: the row that begins here is no CSV"):
        open_table(write(tmp_path / "q.csv", 'image,question\na.png,b\nb.png,"x\nc.png,y\n'))
    with pytest.raises(ConfigError, match="names the column 'image' twice"):
        open_table(write(tmp_path / "q.csv", "image,image\na.png,b\n"))


def test_parquet_holds_one_row_group(tmp_path: Path) -> None:
    rows = [{"image": {"bytes": bytes([number]), "path": None}, "answers": ["a", str(number)]} for number in range(10)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "q.parquet", row_group_size=4)
    table = open_table(str(tmp_path / "q.parquet"))
    assert (len(table), table.columns) == (10, ("image", "answers"))
    assert [table.row(index) for index in (9, 0, 3, 4)] == [rows[index] for index in (9, 0, 3, 4)]
    assert table.where(9) == f"{tmp_path}/q.parquet, row 10"
    assert list(table.values("answers"))[9] == ["a", "9"]
    assert table._held[1].num_rows == 4  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="is no Parquet file"):
        open_table(write(tmp_path / "broken.parquet", "PAR1 and no more"))


@pytest.mark.parametrize(
    ("name", "text", "what"),
    [
        ("q.jsonl", "\n", "has no questions"),
        ("q.csv", "", "has no questions"),
        ("q.csv", "image,question\n", "has no questions"),
        ("q.txt", "a", "unknown suffix '.txt'; use a file (.jsonl, .ndjson, .json, .csv, .tsv, .parquet)"),
        ("q.jsonl", "a\nb\n", "no line of"),
        (
            "q.jsonl",
            "a\nb\n",
            "q.jsonl, line 1: broken JSON (Expecting value: line 1 column 1 (char 0)); write",
        ),
        ("q.jsonl", "{}\n{}\n", "q.jsonl, line 1: an empty object; write one JSON object per line"),
        ("q.jsonl", "[\n{},\n{}\n]", "a file with one list of objects is named .json"),
    ],
)
def test_files_that_are_no_table(tmp_path: Path, name: str, text: str, what: str) -> None:
    with pytest.raises(ConfigError) as caught:
        open_table(write(tmp_path / name, text))
    assert what in str(caught.value)


@pytest.mark.parametrize("suffix", ["jsonl", "ndjson", "json", "csv", "tsv"])
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_utf_16_is_refused(tmp_path: Path, suffix: str, encoding: str) -> None:
    """Spreadsheets and PowerShell write it; no line of it could be read."""
    path = write(tmp_path / f"q.{suffix}", '{"image": "a.png"}\n', encoding)
    with pytest.raises(ConfigError, match=r"is not UTF-8, but UTF-16 or no text; save it as UTF-8, e.g. with `iconv"):
        open_table(path)


def test_cells_of_any_length(tmp_path: Path) -> None:
    """The module csv has a limit of 131,072 characters, which is one for all threads of a process."""
    long, limit = "x" * 1_000_000, csv.field_size_limit()
    table = open_table(write(tmp_path / "q.csv", f'image,question\n{long},"{long}\n{long}"\nb.png,y\n'))
    assert table.row(0) == {"image": long, "question": f"{long}\n{long}"}
    assert table.row(1)["image"] == "b.png"
    assert csv.field_size_limit() == limit


def test_rows_are_those_of_the_module_csv() -> None:
    """Random texts of separators, quotes and line breaks, taken apart by both."""
    draw = random.Random(0)
    told = 0
    for _ in range(3000):
        text = "".join(draw.choice('ab,"\n') for _ in range(draw.randrange(12)))
        lines = text.splitlines(keepends=True)
        try:
            expected = list(csv.reader(lines, strict=True))
        except csv.Error:
            with pytest.raises(ValueError, match="quote"):
                rows_of(lines)
            told += 1
        else:
            assert rows_of(lines) == expected
    assert 100 < told < 2900


def rows_of(lines: list[str]) -> list[list[str]]:
    taken = iter([line.encode() for line in lines])
    return [[cell.decode() for cell in row] for row in iter(lambda: read_row(taken, b","), None)]


def test_missing_files_and_packages(tmp_path: Path) -> None:
    with pytest.raises(MissingDataError, match=r"no file or folder 'nowhere/q.csv'; use a file"):
        open_table("nowhere/q.csv")
    with pytest.raises(MissingDataError, match=r"no file or folder"):
        open_table(str(tmp_path / "nowhere"))
    with pytest.raises(MissingDataError, match=r"pip install 'tokenprune-mllm\[data\]'"):
        optional("no_such_package.part", "reading it")


def test_a_file_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "q.jsonl", '{"image": "a"}')

    def locked(self: Path, *args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", locked)
    with pytest.raises(MissingDataError, match=r"q.jsonl cannot be read \(Permission denied\); check its permissions"):
        open_table(path)
    assert not source("q.jsonl", tmp_path, "").is_picture()


def test_ids_are_unique(tmp_path: Path) -> None:
    lines = ['{"id": 1}', "broken", '{"id": "b"}', '{"id": "1"}', '{"id": null}', "{}"]
    table = open_table(write(tmp_path / "q.jsonl", "\n".join(lines)))
    with pytest.raises(ConfigError, match=r"q.jsonl, line 1 and line 4 have the same id '1'; make ids unique"):
        check_unique(table, "id")
    check_unique(open_table(write(tmp_path / "q.jsonl", "\n".join(lines[1:]))), "id")


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
@pytest.mark.slow
def test_memory_does_not_grow_with_the_lines(tmp_path: Path, suffix: str) -> None:
    """20,000 lines of 200 characters: an index of 16 bytes a line, and 24 while ids are compared."""
    count, filler = 20_000, "x" * 200
    with (tmp_path / f"q.{suffix}").open("w", encoding="utf-8") as file:
        file.write("" if suffix == "jsonl" else "id,question\n")
        for number in range(count):
            row = {"id": str(number), "question": filler}
            file.write(f"{json.dumps(row) if suffix == 'jsonl' else ','.join(row.values())}\n")
    open_table(str(tmp_path / f"q.{suffix}"))  # what is imported and compiled at the first call
    tracemalloc.start()
    try:
        table = open_table(str(tmp_path / f"q.{suffix}"))
        check_unique(table, "id")
        for index in range(0, count, 100):
            assert table.row(index)["id"] == str(index)
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held / count < 20
    assert peak / count < 48


def test_a_csv_column_of_integers_that_an_export_made_floats(tmp_path: Path) -> None:
    """A column counts as one if all of its cells are whole; a single other cell leaves it as it is."""
    table = open_table(write(tmp_path / "q.csv", "a,b,c,d\n2.0,2.0,2.0,\n,,,\n-10.0,2.5,two,\n"))
    assert [table.row(index) for index in (0, 2)] == [
        {"a": "2", "b": "2.0", "c": "2.0", "d": ""},
        {"a": "-10", "b": "2.5", "c": "two", "d": ""},
    ]
    assert list(table.values("a")) == ["2", "", "-10"]
