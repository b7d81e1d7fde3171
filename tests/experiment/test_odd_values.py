"""Texts and values that files cannot hold: repaired, written as text, or refused before the first answer."""

from __future__ import annotations

import csv
import datetime
import enum
import io
import json
import re
import sys
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import tokenprune as tp
from tests.support.simple import fastv, pair
from tests.support.toy import Letters, ToyModel, ToyTask, config
from tokenprune.cli.commands import main
from tokenprune.core.component import FromRegistry
from tokenprune.core.text import well_formed
from tokenprune.errors import SampleError
from tokenprune.experiment import run_experiment, write_report
from tokenprune.experiment.answers import digest
from tokenprune.experiment.comparison import compare, write_comparison
from tokenprune.experiment.folder import read_result
from tokenprune.experiment.paper_table import csv_table, latex_table
from tokenprune.experiment.summary import summarise
from tokenprune.models.base import LoadedModel
from tokenprune.output.folder import OutputFolder
from tokenprune.output.lines import json_ready, line
from tokenprune.pictures.draw import draw, save
from tokenprune.tasks.base import Sample
from tokenprune.tuning import TuneConfig, run_tune

LONE = "a\ud800b"
FEW: dict[str, Any] = {
    "methods": ["norm-hidden-large"],
    "oracle": False,
    "budgets": [{"name": "keep_count", "tokens": 2}],
    "examples": 2,
}


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("\ud800", "\ufffd"),
        ("a\udc80b", "a\ufffdb"),
        ("\ud83d\ude00", "\N{GRINNING FACE}"),
        ("\udc00\ud800", "\ufffd\ufffd"),
        ("a\N{GRINNING FACE}\u00e9\0", "a\N{GRINNING FACE}\u00e9\0"),
        (np.str_("a"), "a"),
    ],
)
def test_well_formed(text: str, wanted: str) -> None:
    assert well_formed(text) == wanted
    assert type(well_formed(text)) is str
    well_formed(text).encode()


class Surrogates(ToyTask):
    """Every text of a sample holds a lone surrogate."""

    def samples(self) -> list[Sample]:
        return [
            replace(
                sample,
                id=f"{sample.id}\ud800",
                question=f"{sample.question}\udfff",
                answer=LONE,
                answers=(LONE, "w"),
                choices=(LONE,),
                type=f"{sample.type}\ud800",
                group=f"{sample.group}\udc80",
            )
            for sample in super().samples()[:6]
        ]

    def fingerprints(self) -> list[str]:
        return [f"{number}\ud800" for number in range(6)]


class SpeaksSurrogates(ToyModel):
    """Every answer holds one, too."""

    def load(self) -> LoadedModel:
        class Odd(Letters):
            def batch_decode(self, ids: torch.Tensor, skip_special_tokens: bool = True) -> list[str]:
                return [f"{text} {LONE}" for text in super().batch_decode(ids)]

        return replace(super().load(), processor=Odd())


@pytest.mark.slow
def test_no_file_of_an_experiment_fails_on_a_surrogate(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    given = config(str(folder), task=Surrogates(), model=SpeaksSurrogates(), divergence=True, **FEW)
    write_report(run_experiment(given))
    again = run_experiment(given)
    assert len(again.rows) == 12
    assert {row["answer"] for row in again.rows} == {"a\ufffdb"}
    assert all(row["prediction"].endswith("a\ufffdb") for row in again.rows)
    write_report(read_result(folder))
    tables = {"toy": summarise(again)}
    (tmp_path / "t.tex").write_text(latex_table(tables), encoding="utf-8")
    text = csv_table(tables)
    (tmp_path / "t.csv").write_text(text, encoding="utf-8")
    assert list(csv.reader(io.StringIO(text)))
    other = run_experiment(config(str(tmp_path / "other"), task=Surrogates(), model=SpeaksSurrogates(), **FEW))
    write_comparison(compare([again, other]), tmp_path / "compared")
    files = [path for path in tmp_path.rglob("*") if path.suffix in (".jsonl", ".json", ".md", ".html", ".csv", ".tex")]
    assert {path.suffix for path in files} >= {".jsonl", ".json", ".md", ".html", ".csv", ".tex"}
    for path in files:
        text = path.read_text(encoding="utf-8")
        assert path.suffix not in (".json", ".jsonl") or not re.search(r"\\ud[89a-f]", text), path
    assert r"a\ufffdb" in (folder / "samples.jsonl").read_text()


@pytest.mark.slow
def test_no_file_of_a_tune_fails_on_a_surrogate(tmp_path: Path) -> None:
    class Trained(Surrogates):
        def calibration(self, count: int) -> list[Sample]:
            return self.samples()[:count]

    plain = {"model": SpeaksSurrogates(), "task": Trained(), "methods": ("norm-hidden-large",), "samples": 6}
    budget = {"name": "layer_average", "ratio": 0.5}
    run_tune(TuneConfig.from_dict({**plain, "budget": budget, "labels": True, "first": 2, "output": str(tmp_path)}))
    assert (tmp_path / "tuned.yaml").is_file()


@pytest.mark.slow
def test_rows_of_older_versions_can_be_reported(tmp_path: Path) -> None:
    """JSON holds what nothing repaired then."""
    run_experiment(config(str(tmp_path), **FEW))
    path = tmp_path / "samples.jsonl"
    rows = [json.loads(text) for text in path.read_text().splitlines()]
    path.write_text("".join(json.dumps({**row, "prediction": LONE}) + "\n" for row in rows))
    assert r"\ud800" in path.read_text()
    write_report(read_result(tmp_path))
    assert digest(LONE) == digest("a\ufffdb")


@pytest.mark.slow
def test_questions_of_a_file(tmp_path: Path) -> None:
    """JSON Lines that hold an escaped surrogate, and a picture whose name is no UTF-8."""
    Image.new("RGB", (32, 32), (9, 0, 0)).save(tmp_path / "a.png")
    row = {"image": "a.png", "question": LONE, "answer": "\udc80w"}
    (tmp_path / "q.jsonl").write_text("".join(json.dumps({**row, "id": f"{n}\ud800"}) + "\n" for n in range(3)))
    task = FromRegistry("tasks").build({"name": "vqa", "data": str(tmp_path / "q.jsonl")})
    result = run_experiment(config(str(tmp_path / "out"), task=task, **FEW))
    write_report(result)
    assert {row["answer"] for row in result.rows} == {"\ufffdw"}


@pytest.mark.parametrize("ending", ["png", "svg", "pdf"])
def test_drawings(tmp_path: Path, ending: str) -> None:
    model, inputs = pair(1)
    with tp.apply(model, fastv()) as run:
        model(**inputs)
        look = run.look(question=LONE, answer=LONE, expected=LONE)
    path = tmp_path / f"a.{ending}"
    save(draw([look]), path, title=LONE, description=LONE)
    assert path.stat().st_size > 1000


# ---- types ----


class Colour(enum.Enum):
    """No text."""

    RED = 1


@pytest.mark.parametrize("value", [3, np.int64(3), None, Path("a"), b"yes", datetime.date(2026, 1, 1), Colour.RED])
@pytest.mark.parametrize("field", ["question", "answer", "type", "group"])
def test_a_text_of_a_sample_that_is_none_is_named(field: str, value: Any) -> None:
    sample = ToyTask().samples()[0]
    words = rf"sample 's0': {field} is of the type {type(value).__name__}, not text; let the task convert it"
    with pytest.raises(SampleError, match=words):
        replace(sample, **{field: value})


def test_answers_and_choices_are_several_texts() -> None:
    sample = ToyTask().samples()[0]
    for field in ("answers", "choices"):
        with pytest.raises(SampleError, match=f"'s0': {field} is of the type str, not a tuple of texts"):
            replace(sample, **{field: "yes"})
        with pytest.raises(SampleError, match=f"'s0': {field} is of the type int64, not text"):
            replace(sample, **{field: (np.int64(1),)})
    assert replace(sample, answers=["a", np.str_("b")]).answers == ("a", "b")  # type: ignore[arg-type]


def test_a_sample_of_a_wrong_type_is_found_before_the_first_answer(tmp_path: Path) -> None:
    class Numbers(ToyTask):
        def samples(self) -> list[Sample]:
            return [replace(sample, answer=4) for sample in super().samples()]  # type: ignore[arg-type]

    with pytest.raises(SampleError, match="sample 's0': answer is of the type int, not text"):
        run_experiment(config(str(tmp_path / "out"), task=Numbers(), **FEW))
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("kind", [np.float32, np.float64, np.bool_, torch.tensor])
def test_scores_of_any_number_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Any) -> None:
    monkeypatch.setattr(ToyTask, "score", lambda self, sample, text: kind(True))
    result = run_experiment(config(str(tmp_path), **FEW))
    write_report(result)
    assert {row["score"] for row in result.rows} == {1.0}


@pytest.mark.parametrize("kind", [PurePosixPath, np.str_, lambda text: np.int64(text), lambda text: text.encode()])
def test_fingerprints_of_any_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Any) -> None:
    monkeypatch.setattr(ToyTask, "fingerprints", lambda self: [kind(str(number)) for number in range(24)])
    first = run_experiment(config(str(tmp_path), **FEW))
    assert run_experiment(config(str(tmp_path), **FEW)).rows == first.rows  # they are the same ones


def test_what_json_lacks() -> None:
    values = {
        "numpy": np.float32(0.5),
        "nan": np.float32("nan"),
        "int": np.int64(3),
        "bool": np.bool_(True),
        "array": np.array([[1.0, np.inf]], dtype=np.float32),
        "tensor": torch.tensor([1, 2]),
        "path": PurePosixPath("a/b"),
        "date": datetime.datetime(2026, 1, 2, 3, 4, 5),
        "bytes": b"a\xff",
        "set": {2, 1},
        "enum": Colour.RED,
        "text": np.str_(LONE),
        "plain": [None, True, 1, 0.5, "a", {"b": ()}],
        PurePosixPath("key"): 1,
        4: 1,
        "key\ud800": 1,
    }
    wanted = {
        "numpy": 0.5,
        "nan": None,
        "int": 3,
        "bool": True,
        "array": [[1.0, None]],
        "tensor": [1, 2],
        "path": "a/b",
        "date": "2026-01-02 03:04:05",
        "bytes": "a\ufffd",
        "set": [1, 2],
        "enum": "Colour.RED",
        "text": "a\ufffdb",
        "plain": [None, True, 1, 0.5, "a", {"b": []}],
        "key": 1,
        "4": 1,
        "key\ufffd": 1,
    }
    assert json.loads(line(values)) == wanted
    assert json_ready(True) is True


def test_files_take_any_text(tmp_path: Path) -> None:
    assert OutputFolder(tmp_path).write("a.md", LONE).read_text(encoding="utf-8") == "a\ufffdb"
    folder = OutputFolder(tmp_path)
    folder.write_json("a.json", {"a": LONE})
    assert folder.read_json("a.json") == {"a": "a\ufffdb"}


def test_the_terminal_takes_any_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A name that is no UTF-8, on a terminal that knows ASCII only."""
    bytes_ = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(bytes_, encoding="ascii"))
    monkeypatch.setattr(sys, "argv", ["tokenprune", "schema", "--output", str(tmp_path / "a\udcffb.json")])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    sys.stdout.flush()
    assert b"a\\udcffb.json" in b"".join(bytes_.getvalue().split())
