"""The task `vqa`: from rows to samples, its defaults, and its errors."""

from __future__ import annotations

import copy
import csv
import json
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value
from datasets import Image as ImageFeature
from PIL import Image

from tests.datasets.test_media import picture, video
from tokenprune.core.component import FromRegistry
from tokenprune.errors import ConfigError, MissingDataError, SampleError, TokenPruneError
from tokenprune.tasks.base import Sample
from tokenprune.tasks.vqa import Vqa

Rows = Sequence[Mapping[str, Any]]


def jsonl(path: Path, rows: Rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def parquet(path: Path, rows: Rows) -> str:
    pq.write_table(pa.Table.from_pylist([dict(row) for row in rows]), path)
    return str(path)


def comma_separated(path: Path, rows: Rows) -> str:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows({key: "|".join(v) if isinstance(v, list) else v for key, v in row.items()} for row in rows)
    return str(path)


WRITERS = {"jsonl": jsonl, "parquet": parquet, "csv": comma_separated}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "pictures").mkdir()
    for number, name in enumerate(("a.png", "b.jpg", "ü.webp")):
        picture(tmp_path / "pictures" / name, (20 + number, 10))
    return tmp_path


def vqa(data: str, **fields: Any) -> Vqa:
    """As an experiment makes it."""
    task = FromRegistry("tasks").build({"name": "vqa", "data": data, **fields})
    assert isinstance(task, Vqa)
    return task


def ids(samples: Sequence[Sample]) -> list[str]:
    return [sample.id for sample in samples]


@pytest.mark.each("suffix")
@pytest.mark.parametrize("suffix", WRITERS)
def test_every_format_gives_the_same_samples(folder: Path, suffix: str) -> None:
    rows = [
        {"id": "x", "image": "pictures/a.png", "question": "What?\nWhere?", "answers": ["a", "b"], "type": "t"},
        {"id": "y", "image": "pictures/ü.webp", "question": "日本?", "answers": ["c"], "type": ""},
    ]
    task = vqa(WRITERS[suffix](folder / f"q.{suffix}", rows))
    samples = task.samples()
    assert (len(samples), task.label_free) == (2, False)
    first, last = samples[0], samples[-1]
    assert (first.id, first.question, first.answer, first.answers) == ("x", "What?\nWhere?", "a", ("a", "b"))
    assert (first.type, first.group, first.choices) == ("t", "pictures/a.png", ())
    assert [image.size for image in first.images] == [(20, 10)]
    assert (last.id, last.question, last.answers, last.type) == ("y", "日本?", ("c",), "all")
    assert ids(samples[::-1]) == ["y", "x"]
    again = samples[-1]
    assert samples[-1] is again, "the last sample is kept"
    assert ids(task.calibration(5)) == ["x", "y"]
    with pytest.raises(IndexError):
        samples[2]


def test_several_images_and_other_names(folder: Path) -> None:
    rows = [{"pics": ["a.png", "b.jpg"], "image": "ü.webp", "ask": "Which?", "answer": 2, "id": "same"}] * 2
    columns = {"images": "pics", "question": "ask", "id": None}
    task = vqa(
        jsonl(folder / "q.jsonl", rows), columns=columns, images=str(folder / "pictures"), instruction="Be brief."
    )
    samples = task.samples()
    assert [image.size[0] for image in samples[0].images] == [22, 20, 21]
    assert samples[0].group == "ü.webp|a.png|b.jpg"
    assert (samples[0].question, samples[0].answer) == ("Which?\nBe brief.", "2")
    assert ids(samples) == ["line-1", "line-2"]


def test_the_answers_of_ten_annotators(folder: Path) -> None:
    """In the form of the VQA benchmark's own files."""
    answers = [{"answer": "net", "answer_id": number} for number in range(3)] + [{"answer": "a net"}, {"answer": "x"}]
    rows = [{"image": "pictures/a.png", "question": "What?", "answers": answers}]
    task = vqa(jsonl(folder / "q.jsonl", rows), metric="vqa_accuracy")
    sample = task.samples()[0]
    assert sample.answers == ("net", "net", "net", "a net", "x")
    assert task.score(sample, "Net.") == 1
    assert task.score(sample, "x") == pytest.approx(4 / 5 / 3)


def test_multiple_choice(folder: Path) -> None:
    rows = [
        {"image": "pictures/a.png", "question": "Which?", "choices": ["cat", "dog"], "answer": "B"},
        {"image": "pictures/a.png", "question": "What?", "choices": [], "answer": "cat"},
        {"image": "pictures/a.png", "question": "Which?", "choices": ["cat", "dog"], "answer": "bird"},
    ]
    task = vqa(jsonl(folder / "q.jsonl", rows), instruction="Answer with a letter.")
    samples = task.samples()
    assert samples[0].question == "Which?\nA. cat\nB. dog\nAnswer with a letter."
    assert [task.score(samples[0], text) for text in ("B", "a dog", "A. cat")] == [1, 1, 0]
    assert samples[1].question == "What?\nAnswer with a letter."
    assert task.score(samples[1], "A cat.") == 1
    with pytest.raises(
        SampleError, match=r"line 3: the answer 'bird' is not the letter of a choice \('A. cat', 'B. dog'\)"
    ):
        samples[2]


def test_without_answers_the_unpruned_model_is_the_measure(folder: Path) -> None:
    rows = [{"image": "pictures/a.png", "question": "What?", "answer": "cat"}]
    task = vqa(jsonl(folder / "q.jsonl", rows), metric="agreement")
    assert task.label_free
    assert task.samples()[0].references == ()
    task = vqa(jsonl(folder / "q.jsonl", [{"image": "pictures/a.png", "question": "What?"}]))
    assert task.label_free
    sample = task.samples()[0]
    assert task.score(sample, "cat") == 0, "nothing to agree with yet"
    answered = Sample(sample.id, sample.images, sample.question, "The cat", sample.type, sample.group)
    assert (task.score(answered, "cat"), task.score(answered, "dog")) == (1, 0)


def test_a_folder_of_pictures_alone(folder: Path) -> None:
    (folder / "pictures" / "notes.txt").write_text("no picture", encoding="utf-8")
    task = vqa(str(folder / "pictures"), question="What is this?")
    assert task.label_free
    samples = task.samples()
    assert ids(samples) == ["a.png", "b.jpg", "ü.webp"]
    assert {sample.question for sample in samples} == {"What is this?"}
    (folder / "pictures" / "a.png").write_bytes(b"broken")
    with pytest.raises(SampleError, match=r"pictures/a.png: the image 'a.png' cannot be read"):
        task.samples()[0]
    with pytest.raises(ConfigError, match="or one `question` for all"):
        vqa(str(folder / "pictures")).samples()


def test_a_video(folder: Path) -> None:
    video(folder / "v.mp4", 9)
    task = vqa(jsonl(folder / "q.jsonl", [{"video": "v.mp4", "question": "What?", "answer": "x"}]), frames=3)
    sample = task.samples()[0]
    assert (sample.images, sample.group) == ((), "v.mp4")
    assert sample.videos[0].frames.shape == (3, 16, 32, 3)
    assert sample.videos[0].times == pytest.approx((0, 0.4, 0.8))
    assert sample.videos[0].duration == pytest.approx(0.9)


@pytest.mark.slow
def test_a_saved_dataset(folder: Path) -> None:
    """Pictures stay encoded until a sample is asked for; class labels become their names."""
    paths = [str(folder / "pictures" / name) for name in ("a.png", "b.jpg")]
    (folder / "broken.png").write_bytes(b"broken")
    features = Features(
        {
            "image": ImageFeature(),
            "images": List(ImageFeature()),
            "question": Value("string"),
            "answer": ClassLabel(names=["no", "yes"]),
        }
    )
    rows = {
        "image": [*paths, str(folder / "broken.png")],
        "images": [paths, [], []],
        "question": ["a?", "b?", "c?"],
        "answer": [1, 0, 1],
    }
    made = Dataset.from_dict(rows, features=features)
    made.save_to_disk(folder / "one")
    DatasetDict(train=made, test=made.select([2, 1, 0])).save_to_disk(folder / "two")
    samples = vqa(str(folder / "one")).samples()
    assert (len(samples), samples[0].answer, len(samples[0].images)) == (3, "yes", 3)
    assert samples[1].id == "row-2"
    with pytest.raises(SampleError, match=r"one, row 3: the image .* cannot be read"):
        samples[2]
    assert vqa(str(folder / "two"), split="test").samples()[1:][0].question == "b?"
    with pytest.raises(ConfigError, match="has the splits train, test, and none is chosen"):
        vqa(str(folder / "two")).samples()
    with pytest.raises(ConfigError, match="has no split 'tset'; did you mean 'test'"):
        vqa(str(folder / "two"), split="tset").samples()
    with pytest.raises(MissingDataError, match=r"no file or folder 'nobody/nothing', and no dataset of that name"):
        vqa("nobody/nothing", split="test").samples()


GOOD = {"image": "pictures/a.png", "question": "What?", "answer": "x"}


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ({"image": "pictures/c.png"}, r"the file 'pictures/c.png' does not exist"),
        ({"image": "https://example.org/a.png"}, r"is a URL, and nothing is downloaded; download it first"),
        ({"image": None}, r"no image and no video; write the path"),
        ({"image": 3}, r"cannot be read from the type int"),
        ({"image": "broken.png"}, r"the image 'broken.png' cannot be read"),
        ({"question": " "}, r"the question is empty; write one, or remove the line"),
        ({"question": ["What?"]}, r"question is of the type list: \['What\?'\]; write a text or a number"),
        ({"answer": None}, r"no answer; write them, remove the line, or choose another metric"),
        ({"answer": True}, r"answer is of the type bool"),
        ({"answer": {"text": "x"}}, r"answer is of the type dict"),
    ],
)
def test_one_bad_line_is_its_own_error(folder: Path, row: dict[str, Any], what: str) -> None:
    """The message has one line and names file and line; the other lines can be read."""
    (folder / "broken.png").write_bytes((folder / "pictures" / "a.png").read_bytes()[:100])
    samples = vqa(jsonl(folder / "q.jsonl", [GOOD, GOOD | row, GOOD])).samples()
    with pytest.raises(SampleError, match=what) as caught:
        samples[1]
    assert str(caught.value).startswith(f"{folder}/q.jsonl, line 2: ")
    assert "\n" not in str(caught.value)
    assert (samples[0].answer, samples[2].id) == ("x", "line-3")


@pytest.mark.parametrize(
    ("fields", "row", "what"),
    [
        (
            {"columns": {"image": "imge"}},
            {},
            r"q.jsonl has no column 'imge' \(image\); did you mean 'image'\? \(it has:",
        ),
        ({}, {"image": None, "img": "x"}, r"no column 'image', 'images' or 'video'; .* did you mean 'img'"),
        ({}, {"question": None, "questions": "x"}, r"no column 'question'; .* did you mean 'questions'"),
        ({}, {"answer": None, "anwser": "x"}, r"no column 'answer', but 'anwser'; write columns: {answer: anwser}, or"),
        ({"metric": "anls"}, {"answer": None}, r"metric: it compares with answers, .* use metric: agreement"),
        ({"metric": "multiple_choice"}, {}, r"multiple_choice needs choices, .* no column 'choices'"),
        ({"images": "nowhere"}, {}, r"images: there is no folder 'nowhere'"),
        ({"split": "test"}, {}, r"is a file and has neither; omit them"),
    ],
)
def test_what_is_wrong_with_the_whole_file_is_said_at_the_start(
    folder: Path, fields: dict[str, Any], row: dict[str, Any], what: str
) -> None:
    """None takes a column away."""
    columns = {key: value for key, value in (GOOD | row).items() if value is not None}
    with pytest.raises(ConfigError, match=what) as caught:
        vqa(jsonl(folder / "q.jsonl", [columns]), **fields).samples()
    assert "\n" not in str(caught.value)


def test_same_ids_are_an_error(folder: Path) -> None:
    rows = [GOOD | {"id": name} for name in ("a", "b", "a")]
    with pytest.raises(ConfigError, match=r"line 1 and line 3 have the same id 'a'; .* columns: {id: null}"):
        vqa(jsonl(folder / "q.jsonl", rows)).samples()


def test_a_task_is_a_plain_setting(folder: Path) -> None:
    """It is checked and written without opening its data, and copies do not share what was opened."""
    assert FromRegistry("tasks").dump(vqa("nowhere.jsonl", metric="anls"))["metric"] == {
        "name": "anls",
        "threshold": 0.5,
    }
    with pytest.raises(TokenPruneError, match="no file or folder"):
        vqa("nowhere.jsonl").samples()
    task = vqa(jsonl(folder / "q.jsonl", [GOOD]))
    assert len(task.samples()) == 1
    other = task.model_copy(update={"data": jsonl(folder / "r.jsonl", [GOOD, GOOD])})
    assert len(other.samples()) == 2
    assert pickle.loads(pickle.dumps(task)).samples()[0].id == copy.deepcopy(task).samples()[0].id == "line-1"
    assert task == vqa(task.data)


def test_pictures_are_decoded_when_a_sample_is_asked_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[object] = []
    original = Image.open

    def counted(path: Any, *args: Any) -> Any:
        opened.append(path)
        return original(path, *args)

    monkeypatch.setattr(Image, "open", counted)
    samples = vqa(jsonl(folder / "q.jsonl", [GOOD] * 50)).samples()
    assert (len(samples), opened) == (50, [])
    assert samples[30].id == samples[30].id == "line-31"
    assert len(opened) == 1
