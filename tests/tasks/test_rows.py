"""Rows as people have them: what is read, in every format, and what is left out with the way to write it."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset

from tests.datasets.test_media import picture
from tokenprune.core.component import FromRegistry
from tokenprune.errors import ConfigError, SampleError
from tokenprune.tasks.base import Sample
from tokenprune.tasks.vqa import Vqa

Row = Mapping[str, Any]
GIVEN = {"image": "a.png", "question": "Which?"}


def jsonl(folder: Path, rows: Sequence[Row]) -> str:
    path = folder / "q.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def parquet(folder: Path, rows: Sequence[Row]) -> str:
    pq.write_table(pa.Table.from_pylist([dict(row) for row in rows]), folder / "q.parquet")
    return str(folder / "q.parquet")


def separated(folder: Path, rows: Sequence[Row]) -> str:
    """Lists with bars, mappings as Python writes them, and empty cells for what is missing."""
    path = folder / "q.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)))
        writer.writeheader()
        writer.writerows({key: cell(value) for key, value in row.items()} for row in rows)
    return str(path)


def cell(value: Any) -> Any:
    if isinstance(value, list) and not any(isinstance(entry, dict) for entry in value):
        return "|".join(str(cell(entry)) for entry in value)
    return "" if value is None or (isinstance(value, float) and math.isnan(value)) else value


def saved(folder: Path, rows: Sequence[Row]) -> str:
    Dataset.from_list([dict(row) for row in rows]).save_to_disk(folder / "saved")
    return str(folder / "saved")


Writer = Callable[[Path, Sequence[Row]], str]
WRITERS: dict[str, Writer] = {"jsonl": jsonl, "csv": separated, "parquet": parquet, "dataset": saved}
each_format = pytest.mark.parametrize("write", WRITERS.values(), ids=list(WRITERS))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    picture(tmp_path / "a.png", (20, 10))
    return tmp_path


def vqa(data: str, **fields: Any) -> Vqa:
    """As an experiment makes it."""
    root = {"images": str(Path(data).parent)} if Path(data).is_dir() else {}
    task = FromRegistry("tasks").build({"name": "vqa", "data": data, **root, **fields})
    assert isinstance(task, Vqa)
    return task


def asked(rows: Sequence[Row]) -> list[Row]:
    return [GIVEN | row for row in rows]


def chosen(task: Vqa, sample: Sample) -> str:
    """The letters that count as right."""
    return "".join(letter for letter in "ABCDEF" if task.score(sample, letter))


def reason(task: Vqa, index: int) -> str:
    with pytest.raises(SampleError) as caught:
        task.samples()[index]
    assert "\n" not in str(caught.value)
    return str(caught.value)


@each_format
def test_a_gap_leaves_the_letters_at_their_places(folder: Path, write: Writer) -> None:
    choices = [
        ["", "two", "one", "three"],
        [None, "two", "one", "three", None],
        ["one", "", None, "four"],
        ["one", "two", "", ""],
    ]
    answers = ["B", "three", "D", "b"]
    rows = asked([{"choices": given, "answer": answer} for given, answer in zip(choices, answers, strict=True)])
    task = vqa(write(folder, [*rows, *asked([{"choices": choices[0], "answer": "A"}])]))
    samples = task.samples()
    assert samples[0].question == "Which?\nB. two\nC. one\nD. three"
    assert samples[1].choices == ("", "two", "one", "three")
    assert samples[2].question == "Which?\nA. one\nD. four"
    assert samples[3].choices == ("one", "two")
    assert [chosen(task, sample) for sample in samples[:4]] == ["B", "D", "D", "B"]
    assert [task.score(samples[0], said) for said in ("two", "B. two", "A. two", "A", "one")] == [1, 1, 1, 0, 0]
    assert "the answer 'A' is not the letter or the text of a choice ('B. two', 'C. one', 'D. three')" in reason(
        task, 4
    )


@pytest.mark.parametrize("choices", [["one"], [None, "two"], ["", "", "x", ""]])
@each_format
def test_one_choice_is_none(folder: Path, write: Writer, choices: list[str | None]) -> None:
    task = vqa(write(folder, asked([{"choices": choices, "answer": "A"}, {"choices": ["one", "two"], "answer": "A"}])))
    assert "choices holds only one" in reason(task, 0)
    assert task.samples()[1].answer == "A"


@pytest.mark.parametrize(
    "text",
    [
        "['one', 'two', 'three', 'four']",
        '["one", "two", "three", "four"]',
        "('one', 'two', 'three', 'four')",
        "['one', 'two', 'three', 'four', nan, None]",
        "['one',\n 'two', 'three', \"four\"]",
        "{'A': 'one', 'B': 'two', 'C': 'three', 'D': 'four'}",
        '{"label": ["A", "B", "C", "D"], "text": ["one", "two", "three", "four"]}',
        "[{'label': 'A', 'text': 'one'}, {'label': 'B', 'text': 'two'}, {'label': 'D', 'text': 'four'}, "
        "{'label': 'C', 'text': 'three'}]",
    ],
)
@each_format
def test_a_list_in_text_is_a_list(folder: Path, write: Writer, text: str) -> None:
    """MMMU and its kin write Python's form, and so does an export of lists to CSV."""
    rows = asked([{"options": text, "answer": "C"}])
    task = vqa(write(folder, rows), columns={"choices": "options"})
    sample = task.samples()[0]
    assert sample.choices == ("one", "two", "three", "four")
    assert (chosen(task, sample), task.score(sample, "three")) == ("C", 1)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("['a' 'b']", "looks like a list and cannot be read as one"),  # numpy's; Python would read 'ab'
        ("['a'\n 'b', 'c']", "looks like a list and cannot be read as one"),
        ("[one, two]", "looks like a list and cannot be read as one"),
        ("array(['a', 'b'], dtype=object)", "looks like a list and cannot be read as one"),
        ("['a', ['b', 'c']]", "choices is of the type list: ['b', 'c']"),
        ("(a) x (b) y", "choices holds only one: '(a) x (b) y'"),
        ("A. x\nB. y", r"choices holds only one: 'A. x\nB. y'"),
        ("['a']", "choices holds only one: 'a'"),
        ("{'a': 'x', 'yes': 'y'}", "choices are of the type dict: {'a': 'x', 'yes': 'y'}"),
    ],
)
@each_format
def test_what_is_no_list_is_refused(folder: Path, write: Writer, text: str, what: str) -> None:
    rows = asked([{"choices": text, "answer": "A"}, {"choices": "['one', 'two']", "answer": "A"}])
    task = vqa(write(folder, rows))
    assert what in reason(task, 0)
    assert "write" in reason(task, 0)
    assert task.samples()[1].choices == ("one", "two")


@each_format
def test_brackets_in_a_list_in_text(folder: Path, write: Writer) -> None:
    """Intervals are choices of questions in mathematics."""
    task = vqa(write(folder, asked([{"choices": "['(-1, 1]', '[2, 3)']", "answer": "B"}])))
    assert task.samples()[0].choices == ("(-1, 1]", "[2, 3)")
    task = vqa(write(folder, asked([{"choices": "['(-1, 1]' '[2, 3)']", "answer": "B"}])))
    assert "looks like a list and cannot be read" in reason(task, 0)


@each_format
def test_answers_in_text_are_several(folder: Path, write: Writer) -> None:
    texts = ["['cat', 'a cat']", '["cat", "a cat"]', "cat", "['cat' 'dog']", "[unclear", "[1, 2]"]
    task = vqa(write(folder, asked([{"answers": text} for text in texts])))
    samples = task.samples()
    assert samples[0].answers == samples[1].answers == ("cat", "a cat")
    assert samples[2].answers == ("cat",)
    assert "answers looks like a list and cannot be read as one" in reason(task, 3)
    assert (samples[4].answers, samples[5].answers) == (("[unclear",), ("1", "2"))


@each_format
def test_a_single_answer_is_a_text_unless_it_writes_a_list_of_texts(folder: Path, write: Writer) -> None:
    texts = ["['cat', 'a cat']", "[1, 2]", "a|b", "(3, 4)", "[unclear]", "['cat' 'dog']"]
    task = vqa(write(folder, asked([{"answer": text} for text in texts])))
    samples = task.samples()
    assert samples[0].answers == ("cat", "a cat")
    assert [samples[index].answers for index in range(1, 5)] == [("[1, 2]",), ("a|b",), ("(3, 4)",), ("[unclear]",)]
    assert "answer looks like a list and cannot be read as one" in reason(task, 5)


ANIMALS = ["cat", "dog", "bird"]


@pytest.mark.parametrize(
    ("answers", "letters", "found"),
    [
        ([0, 1, 2], "ABC", "index0"),  # ScienceQA
        (["1", "0", "2"], "BAC", "index0"),  # AI2D
        ([1, 3], "AC", "index1"),
        ([2.0, 0.0], "CA", "index0"),
        (["b", "(C)", "A."], "BCA", "letter"),
        (["dog", "The cat"], "BA", "text"),
        (["B", "bird"], "BC", "letter or text"),
    ],
)
@each_format
def test_what_answers_are_is_found_where_one_reading_fits_all(
    folder: Path, write: Writer, answers: list[Any], letters: str, found: str
) -> None:
    task = vqa(write(folder, asked([{"choices": ANIMALS, "answer": answer} for answer in answers])))
    assert "".join(chosen(task, sample) for sample in task.samples()) == letters
    assert any(remark.startswith(f"answer_is: {found}") for remark in task.remarks())


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([(ANIMALS, 1), (ANIMALS, 2)], ["index0 and index1 fit all rows", "line 1", "index0 B. dog, as index1 A. cat"]),
        ([(["1", "2", "3"], "2")], ["text and index0 and index1 fit all rows", "as text B. 2, as index0 C. 3"]),
        ([(["B", "A"], "A")], ["letter and text fit all rows", "as letter A. B, as text B. A"]),
        (
            [(ANIMALS, "A"), (ANIMALS, "B"), (ANIMALS, 2)],
            ["nothing fits all rows; letter fits those before ", "line 3: the answer '2' to"],
        ),
    ],
)
def test_what_answers_are_is_asked_where_it_is_not_clear(
    folder: Path, rows: list[tuple[list[str], Any]], words: list[str]
) -> None:
    data = jsonl(folder, asked([{"choices": choices, "answer": answer} for choices, answer in rows]))
    with pytest.raises(ConfigError) as caught:
        vqa(data).samples()
    for word in ["answer_is: ", "write answer_is: letter, text, index0 (counted from 0) or index1 (from 1)", *words]:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("answer_is", "letters"), [("text", "BC"), ("index0", "CB"), ("index1", "BA"), ("letter", "")])
def test_what_answers_are_can_be_said(folder: Path, answer_is: str, letters: str) -> None:
    """Numbers as choices have every meaning. A row that the reading does not fit is left out."""
    rows = asked([{"choices": ["1", "2", "3"], "answer": "2"}, {"choices": ["9", "7", "1"], "answer": 1}])
    task = vqa(jsonl(folder, rows), answer_is=answer_is)
    if letters:
        assert "".join(chosen(task, sample) for sample in task.samples()) == letters
    else:
        assert "the answer '2' is not the letter of a choice" in reason(task, 0)


def test_a_text_that_is_also_the_letter_of_another_choice(folder: Path) -> None:
    """The sample then holds the letter of the choice that is meant: metrics look for letters first."""
    rows = asked([{"choices": ["B", "A"], "answer": "A"}, {"choices": ["C", "B"], "answer": "C"}])
    task = vqa(jsonl(folder, rows))  # the second answer is no letter
    assert [sample.answer for sample in task.samples()] == ["B", "C"]
    assert [chosen(task, sample) for sample in task.samples()] == ["B", "AC"], "C is the text of A"
    answers = [(["B", "A"], "A"), (ANIMALS, "dog"), (ANIMALS, "C")]
    mixed = vqa(jsonl(folder, asked([{"choices": choices, "answer": answer} for choices, answer in answers])))
    assert "the answer 'A' is the letter of one choice and the text of another ('A. B', 'B. A')" in reason(mixed, 0)
    assert [sample.answer for sample in mixed.samples()[1:]] == ["dog", "C"]


def test_two_equal_choices_are_no_answer(folder: Path) -> None:
    rows = asked([{"choices": ["cat", "dog", "cat"], "answer": answer} for answer in ("cat", "dog")])
    task = vqa(jsonl(folder, rows))
    assert "the answer 'cat' is not the text of a choice" in reason(task, 0)
    assert chosen(task, task.samples()[1]) == "B"


def test_an_open_question_among_choices(folder: Path) -> None:
    """Its answer is a text; a letter or an index means that its choices stand elsewhere."""
    choices = {"choices": ANIMALS, "answer": "B"}
    rows = asked([choices, {"answer": "a tree"}, {"choices": [], "answer": "C"}, {"choices": None, "answer": "2"}])
    task = vqa(jsonl(folder, rows))
    assert (task.samples()[1].choices, task.score(task.samples()[1], "tree")) == ((), 1)
    assert "the answer 'C' names a choice, and the row has no choices" in reason(task, 2)
    assert task.samples()[3].answer == "2"
    task = vqa(jsonl(folder, asked([choices | {"answer": 0}, {"answer": 2}, {"answer": "C"}])))
    assert "the answer '2' names a choice" in reason(task, 1)
    assert task.samples()[2].answer == "C"
    with pytest.raises(ConfigError, match=r"answer_is: .* has no column 'choices'; remove it, or write columns"):
        vqa(jsonl(folder, asked([{"answer": "x"}])), answer_is="letter").samples()


@each_format
def test_choices_in_columns(folder: Path, write: Writer) -> None:
    """MMBench: some questions have two or three choices, and a hint; a copy on the Hub has the text nan for others."""
    nan = float("nan")
    rows = asked(
        [
            {"A": "one", "B": "two", "C": "three", "D": "four", "answer": "D", "hint": "See."},
            {"A": "one", "B": "two", "C": None, "D": "", "answer": "B", "hint": None},
            {"A": None, "B": "two", "C": "three", "D": "nan", "answer": "C", "hint": "nan"},
            {"A": "one", "B": "two", "C": None, "D": None, "answer": "C", "hint": None},
        ]
    )
    if write is jsonl:
        rows[1] = {**rows[1], "C": nan, "hint": nan}
    task = vqa(write(folder, rows), columns={"question": ["hint", "question"]})
    samples = task.samples()
    assert samples[0].question == "See.\nWhich?\nA. one\nB. two\nC. three\nD. four"
    assert samples[1].question == "Which?\nA. one\nB. two"
    assert samples[2].question == "Which?\nB. two\nC. three"
    assert [chosen(task, sample) for sample in samples[:3]] == ["D", "B", "C"]
    assert "the answer 'C' is not the letter of a choice ('A. one', 'B. two')" in reason(task, 3)
    marks = task.fingerprints()
    rows[0] = {**rows[0], "C": "3"}
    changed = vqa(
        write(folder / "again" if write is saved else folder, rows), columns={"question": ["hint", "question"]}
    )
    assert [one == other for one, other in zip(marks, changed.fingerprints(), strict=True)] == [False, True, True, True]


def test_options_may_be_choices(folder: Path) -> None:
    """Nobody is asked a multiple-choice question without its choices by mistake."""
    data = jsonl(folder, asked([{"options": ["one", "two"], "answer": "B"}]))
    with pytest.raises(ConfigError, match=r"no column 'choices', but 'options'; write columns: {choices: options}, or"):
        vqa(data).samples()
    assert vqa(data, columns={"choices": "options"}).samples()[0].choices == ("one", "two")
    assert vqa(data, columns={"choices": None}).samples()[0].question == "Which?"


@each_format
def test_pictures_in_columns(folder: Path, write: Writer) -> None:
    """MMMU: image_1 to image_7, most of them empty; and a list in a text."""
    picture(folder / "b.png", (10, 20))
    rows = [
        {"question": "Q", "answer": "x", "i1": "a.png", "i2": "b.png"},
        {"question": "Q", "answer": "x", "i1": "b.png"},
    ]
    rows += [{"question": "Q", "answer": "x", "i1": None, "i2": "['b.png', 'a.png']"}]
    data = write(folder, rows)
    samples = vqa(data, columns={"images": ["i1", "i2"]}).samples()
    assert [[image.size for image in samples[index].images] for index in (0, 1)] == [[(20, 10), (10, 20)], [(10, 20)]]
    assert [image.size for image in vqa(data, columns={"images": "i2"}).samples()[2].images] == [(10, 20), (20, 10)]


def test_columns_of_choices_can_be_named(folder: Path) -> None:
    rows = asked([{"option_a": "one", "option_b": "two", "A": "x", "B": "y", "answer": "B"}])
    data = jsonl(folder, rows)
    assert vqa(data, columns={"choices": ["option_a", "option_b"]}).samples()[0].choices == ("one", "two")
    assert vqa(data).samples()[0].choices == ("x", "y")
    assert vqa(data, columns={"choices": None}).samples()[0].question == "Which?"
    for columns, words in (
        ({"choices": ["B", "A"]}, "columns B, A would have the letters A, B"),
        ({"choices": ["A", "C"]}, "no column 'C' (choices)"),
        ({"answer": ["A", "B"]}, "only images, question, choices take several"),
    ):
        with pytest.raises(ConfigError) as caught:
            vqa(data, columns=columns).samples()
        assert words in str(caught.value)


@pytest.mark.parametrize(
    ("choices", "shown"),
    [
        (["A. x", "B. y"], "A. x\nB. y"),
        (["(A) x", "(B) y", "(C) z"], "A. x\nB. y\nC. z"),
        (["a) x", "B: y"], "A. x\nB. y"),
        ([None, "B. y", "C. z"], "B. y\nC. z"),
        (["A. x", "y"], "A. A. x\nB. y"),  # an initial, perhaps
        (["C. Dickens", "A. Pope"], "A. C. Dickens\nB. A. Pope"),
    ],
)
@each_format
def test_letters_that_choices_bring_along(folder: Path, write: Writer, choices: list[str | None], shown: str) -> None:
    task = vqa(write(folder, asked([{"choices": choices, "answer": "B"}])))
    assert task.samples()[0].question == f"Which?\n{shown}"
    assert chosen(task, task.samples()[0]) == "B"


def test_letters_of_other_places_are_refused(folder: Path) -> None:
    """Without the missing choice nobody knows whether B is the first or the second."""
    task = vqa(jsonl(folder, asked([{"choices": ["B. two", "C. one", "D. three"], "answer": "B"}] * 2)))
    assert "bring letters along that are not those of their places: 'B. two', 'C. one'" in reason(task, 1)


@pytest.mark.parametrize(
    ("choices", "read"),
    [
        ({"A": "one", "B": "two"}, ("one", "two")),
        ({"A": None, "B": "two", "C": "three"}, ("", "two", "three")),
        ({"label": ["A", "B"], "text": ["one", "two"]}, ("one", "two")),
        ({"label": ["B", "A"], "text": ["two", "one"]}, ("one", "two")),
        ({"label": ["1", "2"], "text": ["one", "two"]}, ("one", "two")),
        ([{"label": "A", "text": "one"}, {"label": "C", "text": "three"}], ("one", "", "three")),
    ],
)
@each_format
def test_choices_in_mappings(folder: Path, write: Writer, choices: Any, read: tuple[str, ...]) -> None:
    """ARC's and AI2's form, and letters as keys. CSV has Python's text of them."""
    answer = next(letter for letter, choice in zip("ABC", read, strict=False) if choice)
    task = vqa(write(folder, asked([{"choices": choices, "answer": answer}])))
    assert task.samples()[0].choices == read
    assert chosen(task, task.samples()[0]) == answer


@each_format
def test_whole_numbers_that_became_floats(folder: Path, write: Writer) -> None:
    """A missing value turns a column of integers into one of floats; in CSV, if all of its cells say so."""
    rows = [{"id": 7.0, "answer": 2.0, "type": 1.0}, {"id": None, "answer": 12.0, "type": None}, {"answer": None}]
    task = vqa(write(folder, asked(rows)))
    first, second = task.samples()[0], task.samples()[1]
    assert (first.id, first.answer, first.type) == ("7", "2", "1")
    assert task.score(first, "2") == 1
    assert (second.id, second.answer, second.type) == ("line-3" if write is separated else second.id, "12", "all")
    assert "no answer" in reason(task, 2)


@pytest.mark.parametrize("role", ["question", "answer", "answers", "choices", "id", "type", "image"])
@each_format
def test_nan_is_missing(folder: Path, write: Writer, role: str) -> None:
    nan: Any = float("nan")
    missing = [nan, 1.5, 2.0] if role == "choices" else [nan] if role == "answers" else nan
    if role == "image" and write in (parquet, saved):
        missing = None  # a column of texts cannot hold it
    good: Row = {"image": "a.png", "question": 3.0, "answer": 1.5}
    good |= {"choices": {"choices": [0.0, 1.5, 2.0]}, "answers": {"answers": [1.5]}, "id": {"id": 5.0}}.get(role, {})
    task = vqa(write(folder, [good, good | {role: missing}]))
    if role in ("question", "answer", "image"):
        words = {"question": "the question is empty", "answer": "no answer", "image": "no image and no video"}
        assert words[role] in reason(task, 1)
        return
    sample = task.samples()[1]
    assert "nan" not in repr(sample)
    if role == "choices":
        assert sample.choices == ("", "1.5", "2" if write is not separated else "2.0")


def test_what_has_no_words(folder: Path) -> None:
    """True and false, times, infinity and mappings have no text that everybody would write."""
    rows = [
        {"answer": True, "question": "Is it?"},
        {"answer": float("inf")},
        {"answer": {"text": "x"}},
        {"question": False, "answer": "x"},
    ]
    task = vqa(jsonl(folder, [GIVEN | row for row in rows]))
    assert "answer is of the type bool: True; write a text, e.g. yes or no" in reason(task, 0)
    assert "columns: {answer: NAME}" in reason(task, 0)
    assert "answer is of the type float: inf" in reason(task, 1)
    assert "answer is of the type dict" in reason(task, 2)
    assert "question is of the type bool" in reason(task, 3)


def test_settings_of_a_task_survive_being_written(folder: Path) -> None:
    data = jsonl(folder, asked([{"A": "x", "B": "y", "answer": 1}]))
    task = vqa(data, answer_is="index0", columns={"choices": ["A", "B"], "question": "question", "type": None})
    dumped = FromRegistry("tasks").dump(task)
    assert (dumped["answer_is"], dumped["columns"]["choices"]) == ("index0", ["A", "B"])
    assert FromRegistry("tasks").build(json.loads(json.dumps(dumped))) == task


def test_what_answers_are_is_found_without_decoding_pictures(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr("tokenprune.tasks.vqa.read_image", refused)
    task = vqa(jsonl(folder, asked([{"choices": ANIMALS, "answer": number % 3} for number in range(1000)])))
    assert len(task.samples()) == 1000
    assert task._opened.reading.answer_is == "index0"


@pytest.mark.parametrize(
    "choices",
    [["B. cat", "A. dog"], ["B. x", "A. y", "C. z"], ["b) x", "a) y"], ["A. x", "A. y"], ["C. x", "D. y"]],
)
def test_letters_in_another_order_are_refused(folder: Path, choices: list[str]) -> None:
    rows = asked([{"choices": choices, "answer": "A"}, {"choices": ["one", "two"], "answer": "A"}])
    assert "bring letters along that are not those of their places" in reason(vqa(jsonl(folder, rows)), 0)


@pytest.mark.parametrize(
    ("choices", "shown"),
    [
        (["A. x", "B. y", "C. "], "A. x\nB. y"),
        (["A. ", "B. y", "C. z"], "B. y\nC. z"),
        (["A.x", "B.y"], "A. x\nB. y"),
        (["[A] x", "[B] y"], "A. x\nB. y"),
        (["A - x", "B - y"], "A. x\nB. y"),
        (["**A.** x", "**B.** y"], "A. x\nB. y"),
        (["A\u3001\u732b", "B\u3001\u72ac"], "A. \u732b\nB. \u72ac"),
        (["J. Smith", "I. Newton"], "A. J. Smith\nB. I. Newton"),
        (["A cat", "Be quick"], "A. A cat\nB. Be quick"),
    ],
)
def test_own_letters_are_taken_off(folder: Path, choices: list[str], shown: str) -> None:
    task = vqa(jsonl(folder, asked([{"choices": choices, "answer": "B"}])))
    assert task.samples()[0].question == f"Which?\n{shown}"
    assert chosen(task, task.samples()[0]) == "B"


def test_an_answer_with_another_letter_than_its_text_is_refused(folder: Path) -> None:
    rows = asked([{"choices": ["one", "two"], "answer": answer} for answer in ("A. two", "B. two", "A", "one")])
    task = vqa(jsonl(folder, rows))
    assert "the answer 'A. two' has the letter of one choice and the text of another" in reason(task, 0)
    assert [chosen(task, sample) for sample in task.samples()[1:]] == ["B", "A", "A"]


@pytest.mark.parametrize(
    ("columns", "meant"),
    [
        (["a", "b", "c"], "[a, b, c]"),
        (["option_a", "option_b"], "[option_a, option_b]"),
        (["Choice 1", "Choice 2"], "[Choice 1, Choice 2]"),
        (["A", "B", "D"], "[A, B, D]"),
        (["A", "B", "options"], "options"),
    ],
)
def test_columns_that_may_be_choices_are_asked_about(folder: Path, columns: list[str], meant: str) -> None:
    data = jsonl(folder, asked([dict.fromkeys(columns, "x") | {"answer": "b"}]))
    with pytest.raises(ConfigError) as caught:
        vqa(data).samples()
    assert f"write columns: {{choices: {meant}}}, or {{choices: null}} to ask without choices" in str(caught.value)
    assert vqa(data, columns={"choices": None}).samples()[0].answer == "b"


def test_answer_and_answers_that_disagree_are_refused(folder: Path) -> None:
    rows = asked([{"answer": "x", "answers": ["y", "z"]}, {"answer": "Y", "answers": ["y", "z"]}])
    task = vqa(jsonl(folder, rows))
    assert "the answer 'x' is not among the answers 'y', 'z'; correct it, or set columns: {answer: null}" in reason(
        task, 0
    )
    assert task.samples()[1].answers == ("y", "z")
    assert vqa(task.data, columns={"answer": None}).samples()[0].answers == ("y", "z")


def test_a_key_of_json_that_stands_twice_is_refused(folder: Path) -> None:
    path = folder / "q.jsonl"
    good = json.dumps(GIVEN | {"answer": "x"})
    path.write_text(f'{good[:-1]}, "answer": "y"}}\n{good}\n')
    task = vqa(str(path))
    assert "the key 'answer' stands twice" in reason(task, 0)
    assert task.samples()[1].answer == "x"


@pytest.mark.parametrize("question", ["<image>\nWhich?", "Which? <image>"])
def test_a_placeholder_in_a_question_stands_for_the_picture(folder: Path, question: str) -> None:
    rows = asked([{"question": question, "answer": "x"}, {"question": f"<image> {question}", "answer": "x"}])
    task = vqa(jsonl(folder, rows))
    assert task.samples()[0].question == "Which?"
    assert "different numbers of pictures (2 and 1)" in reason(task, 1)


def test_one_choice_beside_a_letter_alone_is_one_choice(folder: Path) -> None:
    rows = asked([{"choices": ["A. x", "B. "], "answer": "A"}, {"choices": ["one", "two"], "answer": "A"}])
    assert "choices holds only one" in reason(vqa(jsonl(folder, rows)), 0)
