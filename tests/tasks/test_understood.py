"""Samples as they are understood."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.datasets.test_media import picture, video
from tests.support.toy import ToyTask
from tests.tasks.test_rows import jsonl, vqa
from tokenprune.errors import ConfigError
from tokenprune.tasks.base import Sample, Task
from tokenprune.tasks.understood import ALL, FIRST, TEXTS, understand


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    picture(tmp_path / "a.png", (20, 10))
    (tmp_path / "broken.png").write_bytes(b"broken")
    return tmp_path


GAP = {"image": "a.png", "question": "Which?", "choices": ["", "two", "one", "three"], "answer": "C"}


def test_a_row_in_words(folder: Path) -> None:
    video(folder / "v.mp4", 9)
    rows = [GAP | {"id": "x", "type": "t"}, {"video": "v.mp4", "question": "What?", "answer": ["cat", "a cat"]}]
    found = understand(vqa(jsonl(folder, rows), frames=3, instruction="Be brief."))
    first, second = found.rows
    assert (first.where, first.id, first.type) == (f"{folder}/q.jsonl, line 1", "x", "t")
    assert (first.pictures, first.expected, first.choices) == (("20 x 10",), ("C. one",), ())
    assert first.question == "Which?\nB. two\nC. one\nD. three\nBe brief."
    assert second.pictures[0].startswith("3 frames of 32 x 16, at 0, ")
    assert second.expected == ("cat", "a cat")
    assert (found.count, found.total, found.used, found.open, found.left_out) == (2, 2, 2, 1, ())
    assert found.remarks[:3] == (
        "columns: image: image; video: video; question: question; answer: answer; choices: choices; id: id; type: type",
        "metric: multiple_choice",
        "answer_is: letter (found in the data)",
    )


def test_what_is_left_out_is_grouped_by_reason(folder: Path) -> None:
    bad: list[dict[str, Any]] = [{"answer": "A"}, {"answer": "E"}, {"image": "b.png"}, {"choices": ["one"]}]
    rows = [GAP | change for change in [*bad * 7, {}, {"image": "broken.png"}]]
    data = jsonl(folder, rows)
    found = understand(vqa(data), rows=1)
    assert (found.count, found.used, len(found.rows)) == (30, 2, 1)
    assert [reason.count for reason in found.left_out] == [14, 7, 7]
    assert "line 1: the answer 'A' is not the letter of a choice" in found.left_out[0].example.what
    assert found.left_out[0].places == [f"{data}, line {line}" for line in (1, 2, 5, 6, 9)]
    assert found.remarks[-1] == TEXTS
    whole = understand(vqa(data), rows=1, decode=True)
    assert (whole.used, whole.remarks[-1]) == (1, ALL)
    assert "the image 'broken.png' cannot be read" in whole.left_out[-1].example.what
    assert understand(vqa(data), limit=4).used == 0


def test_only_the_pictures_shown_are_decoded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[object] = []

    def counted(item: Any, where: str) -> Any:
        decoded.append(item)
        raise AssertionError if len(decoded) > 2 else ConfigError("decoded")

    task = vqa(jsonl(folder, [GAP] * 5))
    monkeypatch.setattr("tokenprune.tasks.vqa.read_image", counted)
    assert understand(task, rows=0).used == 5
    assert not decoded
    with pytest.raises(ConfigError, match="decoded"):
        understand(task, rows=1)


def test_without_answers_the_unpruned_model_gives_them(folder: Path) -> None:
    row = understand(vqa(jsonl(folder, [{"image": "a.png", "question": "What?"}]))).rows[0]
    assert row.expected == ()


def test_the_task_of_a_plugin() -> None:
    """Its samples cannot be checked without making their pictures: only those shown are read."""
    found = understand(ToyTask(questions=24))
    assert (found.count, found.total, len(found.rows)) == (3, 24, 3)
    assert (found.rows[1].where, found.rows[1].id, found.rows[1].pictures) == ("sample 2", "s1", ("32 x 32",))
    assert found.remarks == (FIRST,)
    assert understand(ToyTask(questions=24), decode=True).count == 24


def test_choices_that_the_question_does_not_show() -> None:
    class Choosing(Task):
        def samples(self) -> Sequence[Sample]:
            first = ToyTask(questions=1).samples()[0]
            return [Sample("x", first.images, "Which?", "B", "t", "g", choices=("", "cat", "dog"))]

        def score(self, sample: Sample, text: str) -> float:
            return 0.0

    row = understand(Choosing()).rows[0]
    assert (row.choices, row.expected) == (("B. cat", "C. dog"), ("B. cat",))


def test_conversations_and_transparent_pictures_in_words(folder: Path) -> None:
    Image.new("RGBA", (6, 4), (0, 0, 0, 0)).save(folder / "t.png")
    turns = [{"from": "system", "value": "Be brief."}, {"from": "human", "value": "<image>\nWhy?"}]
    answered = [*turns, {"from": "gpt", "value": "So."}]
    found = understand(vqa(jsonl(folder, [{"image": "t.png", "conversations": answered}])))
    assert found.rows[0].pictures == ("6 x 4, transparent parts on white",)
    assert found.rows[0].question == "(system) Be brief.\nWhy?"
    (columns,) = (remark for remark in found.remarks if remark.startswith("columns: "))
    assert "question: conversations" in columns
    assert "Not used" not in columns


def test_unlike_reasons_in_brackets_stay_apart(folder: Path) -> None:
    (folder / "no.png").write_text("no picture")
    (folder / "cut.png").write_bytes((folder / "a.png").read_bytes()[:-30])
    rows = [GAP | {"image": name} for name in ("a.png", "no.png", "cut.png")]
    found = understand(vqa(jsonl(folder, rows)), decode=True)
    assert [reason.count for reason in found.left_out] == [1, 1]
