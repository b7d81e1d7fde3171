"""The task `vqa` on files as people have them: pictures as text, lists of frames, conversations."""

from __future__ import annotations

import base64
import csv
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.datasets.test_media import picture, video
from tokenprune.core.component import FromRegistry
from tokenprune.errors import ConfigError, SampleError
from tokenprune.tasks.base import Sample

Rows = Sequence[Mapping[str, Any]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, name in enumerate(("a.png", "b.png")):
        picture(tmp_path / name, (400 + number, 300))
    for number in range(5):
        Image.new("RGB", (8, 4), (10 * number,) * 3).save(tmp_path / f"f{number}.png")
    return tmp_path


def samples(data: str, **fields: Any) -> Sequence[Sample]:
    task: Any = FromRegistry("tasks").build({"name": "vqa", "data": data, **fields})
    found: Sequence[Sample] = task.samples()
    assert len(set(task.fingerprints())) == len(found), "rows that differ have different fingerprints"
    return found


def jsonl(path: Path, rows: Rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def separated(path: Path, rows: Rows) -> str:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
        writer.writeheader()
        writer.writerows({key: json.dumps(v) if isinstance(v, list) else v for key, v in row.items()} for row in rows)
    return str(path)


def parquet(path: Path, rows: Rows) -> str:
    pq.write_table(pa.Table.from_pylist([dict(row) for row in rows]), path)
    return str(path)


def whole(path: Path, rows: Rows) -> str:
    path.write_text(json.dumps(list(rows), indent=1), encoding="utf-8")
    return str(path)


WRITERS: dict[str, Callable[[Path, Rows], str]] = {
    "jsonl": jsonl,
    "json": whole,
    "csv": separated,
    "tsv": separated,
    "parquet": parquet,
}


@pytest.mark.each("suffix")
@pytest.mark.parametrize("suffix", WRITERS)
def test_pictures_in_base64(folder: Path, suffix: str) -> None:
    """Of more than 131,072 characters; alone, as an address, and in a list."""
    plain, address = (base64.b64encode((folder / name).read_bytes()).decode() for name in ("a.png", "b.png"))
    assert len(plain) > 131_072
    rows = [{"image": plain, "images": [f"data:image/png;base64,{address}"], "question": "What?", "answer": "x"}]
    sample = samples(WRITERS[suffix](folder / f"q.{suffix}", rows))[0]
    assert [image.size for image in sample.images] == [(400, 300), (401, 300)]
    assert len(sample.group) < 60


def test_a_list_in_a_cell(folder: Path) -> None:
    codes = [base64.b64encode((folder / name).read_bytes()).decode() for name in ("a.png", "b.png")]
    rows = [{"images": "|".join(codes), "question": "What?", "answer": "x"}]
    assert [image.width for image in samples(separated(folder / "q.tsv", rows))[0].images] == [400, 401]


@pytest.mark.each("suffix")
@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_a_list_of_pictures_is_one_clip(folder: Path, suffix: str) -> None:
    rows = [{"video": [f"f{number}.png" for number in range(5)], "question": "What?", "answer": "x"}]
    (clip,) = samples(WRITERS[suffix](folder / f"q.{suffix}", rows), frames=3, frame_rate=2)[0].videos
    assert clip.frames.shape == (3, 4, 8, 3)
    assert clip.frames.mean((1, 2, 3)).tolist() == [0, 20, 40]
    assert (clip.times, clip.duration) == ((0, 1, 2), 2.5)


def test_other_lists_of_clips(folder: Path) -> None:
    """A list of lists is a clip for each; so is a list of video files; a single picture is a clip of one frame."""
    video(folder / "v.mp4", 9)
    video(folder / "w.mp4", 3)
    values: list[Any] = [
        [["f0.png", "f1.png"], ["f2.png", "f3.png", "f4.png"]],
        ["v.mp4", "w.mp4"],
        ["f0.png"],
        "v.mp4",
    ]
    rows = [{"video": value, "question": "What?", "answer": "x"} for value in values]
    found = [[clip.times for clip in sample.videos] for sample in samples(jsonl(folder / "q.jsonl", rows), frames=3)]
    assert found[0] == [(0, 1), (0, 1, 2)], "one picture a second, unless the task says otherwise"
    assert [len(times) for times in found[1]] == [3, 3]
    assert found[2] == [(0,)]
    assert len(found[3]) == 1


@pytest.mark.parametrize(
    ("value", "what"),
    [
        (
            ["f0.png", "a.png"],
            r"the frames 'f0.png' and 'a.png' of one clip have different sizes \(8 x 4 and 400 x 300\)",
        ),
        (["f0.png", "v.mp4"], "video holds the picture 'f0.png' beside a video; write the frames of one clip, or"),
        ([["f0.png"], "v.mp4"], "video holds lists beside single files; write one list for each clip"),
        ([["f0.png", "gone.png"]], "the file 'gone.png' does not exist"),
        (
            "moving.webp",
            "the video 'moving.webp' is an animated picture, of which only GIF is read as a video",
        ),
        ([], "no image and no video"),
    ],
)
def test_lists_that_are_no_clips(folder: Path, value: Any, what: str) -> None:
    video(folder / "v.mp4", 3)
    pages = [Image.new("RGB", (8, 8), (value,) * 3) for value in (0, 200)]
    pages[0].save(folder / "moving.webp", save_all=True, append_images=pages[1:])
    rows = [{"video": value, "question": "What?", "answer": "x"}]
    with pytest.raises(SampleError, match=rf"q.jsonl, line 1: {what}"):
        samples(jsonl(folder / "q.jsonl", rows))[0]


TALK = [
    {"from": "human", "value": "<image>\nWhat is this?"},
    {"from": "gpt", "value": "A cat."},
    {"from": "human", "value": "Which colour?"},
    {"from": "gpt", "value": "Grey."},
]


@pytest.mark.each("suffix")
@pytest.mark.parametrize("suffix", ["json", "jsonl", "parquet", "csv"])
def test_the_last_question_of_a_conversation(folder: Path, suffix: str) -> None:
    """As the files of LLaVA have it."""
    rows = [
        {"id": "1", "image": "a.png", "conversations": TALK},
        {"id": "2", "image": "b.png", "conversations": TALK[:2]},
    ]
    first, second = samples(WRITERS[suffix](folder / f"q.{suffix}", rows))
    assert (first.question, first.answer, first.history) == ("Which colour?", "Grey.", (("What is this?", "A cat."),))
    assert (second.question, second.answer, second.history) == ("What is this?", "A cat.", ())
    assert [image.width for image in first.images] == [400]
    assert (first.id, second.group) == ("1", "b.png")


def test_a_conversation_by_columns(folder: Path) -> None:
    """As datasets of Hugging Face store it."""
    columns = {key: [turn[key] for turn in TALK] for key in ("from", "value")}
    sample = samples(parquet(folder / "q.parquet", [{"image": "a.png", "conversations": columns}]))[0]
    assert (sample.question, sample.answer, len(sample.history)) == ("Which colour?", "Grey.", 1)


def test_a_conversation_that_ends_with_a_question(folder: Path) -> None:
    """It needs no labels."""
    rows = [{"image": "a.png", "conversations": TALK[:3]}, {"image": "a.png", "conversations": TALK[:1]}]
    data = jsonl(folder / "q.jsonl", rows)
    assert FromRegistry("tasks").build({"name": "vqa", "data": data}).label_free
    first, second = samples(data)
    assert (first.question, first.references, len(first.history)) == ("Which colour?", (), 1)
    assert second.question == "What is this?"
    with_answer = [dict(row, answer="Grey.") for row in rows]
    assert samples(jsonl(folder / "r.jsonl", with_answer))[0].answer == "Grey."


def test_messages_with_parts(folder: Path) -> None:
    """As chat templates have them: pictures in the turns, as paths or addresses, or in a column."""
    code = base64.b64encode((folder / "b.png").read_bytes()).decode()
    inside = [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "content": [
                {"type": "image", "image": "a.png"},
                {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{code}"}},
                {"type": "text", "text": "Which?"},
            ],
        },
        {"role": "assistant", "content": [{"type": "text", "text": "The cat."}]},
    ]
    beside = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}]
    (first, second) = samples(
        jsonl(folder / "q.jsonl", [{"messages": inside}, {"messages": beside, "images": ["a.png"]}]),
        metric="agreement",
    )
    assert [image.width for image in first.images] == [400, 401]
    assert (first.system, first.question, first.history) == ("Be brief.", "Which?", ())
    assert (second.system, second.question, len(second.images)) == ("", "What?", 1)


def test_a_video_in_a_conversation(folder: Path) -> None:
    video(folder / "v.mp4", 3)
    turns = [{"from": "human", "value": "<video>\nWhat?"}, {"from": "gpt", "value": "x"}]
    inside = [{"role": "user", "content": [{"type": "video", "video": "v.mp4"}, {"type": "text", "text": "Who?"}]}]
    frames = ["f0.png", "f1.png"]
    rows = [{"video": "v.mp4", "conversations": turns}, {"video": frames, "conversations": turns}]
    for sample in samples(jsonl(folder / "q.jsonl", rows)):
        assert (len(sample.videos), sample.question) == (1, "What?")
    assert len(samples(jsonl(folder / "r.jsonl", [{"messages": inside}]))[0].videos) == 1


def human(text: Any) -> list[dict[str, Any]]:
    return [{"from": "human", "value": text}, {"from": "gpt", "value": "x"}]


@pytest.mark.parametrize(
    ("text", "question"),
    [
        ("What?", "What?"),
        ("<image>What?", "What?"),
        ("<image>\nWhat?\nBe brief.", "What?\nBe brief."),
        ("What?\n<image>", "What?"),
    ],
)
def test_the_picture_stands_before_the_question(folder: Path, text: str, question: str) -> None:
    assert (
        samples(jsonl(folder / "q.jsonl", [{"image": "a.png", "conversations": human(text)}]))[0].question == question
    )


PART = {"type": "image", "image": "a.png"}


@pytest.mark.parametrize(
    ("turns", "what"),
    [
        (human("<video>\nWhat?"), "the first turn has a <video>, and the row has none; name it in the column `video`"),
        (human("Is <image> a cat?"), "<image> stands within the text of the question; pictures come before"),
        (
            human("<image>\n<image>\nWhat?"),
            r"question and the row have different numbers of pictures \(2 and 1\); write one",
        ),
        (human("<image>\n") + human("What?"), "an earlier turn is empty"),
        (human("What?") + human("<image>\nAnd this?"), "a picture in a later turn; only those of the first turn"),
        (human("What?")[:1] * 2, "turn 2 is of the user, not of the assistant; user and assistant take turns"),
        (human("What?")[1:], "turn 1 is of the assistant, not of the user"),
        ([{"from": "tool", "value": "5"}], "turn 1: the role is 'tool'; only human, user, gpt, assistant, system are"),
        ([{"role": "user", "content": 5}], "turn 1: the content is 5; write"),
        ([{"role": "user", "content": [{"type": "audio"}]}], "turn 1: a part of the type 'audio'; use text, image"),
        ([{"role": "user", "content": [PART]}], "pictures in the turns and in a column, too; write them at one place"),
        ([], "the conversation has no question"),
        ("What?", "the conversation is no list of turns: 'What\\?'; write"),
        (human(""), "the question is empty"),
    ],
)
def test_conversations_that_are_refused(folder: Path, turns: Any, what: str) -> None:
    good = {"image": "a.png", "conversations": TALK}
    found = samples(jsonl(folder / "q.jsonl", [good, good | {"conversations": turns}]))
    assert found[0].question == "Which colour?"
    with pytest.raises(SampleError, match=rf"q.jsonl, line 2(, turn \d)?: .*{what.removeprefix('turn 1: ')}"):
        found[1]


def test_other_names_of_columns(folder: Path) -> None:
    """A table with questions has no conversations, unless the column is named."""
    rows = [{"pics": ["a.png"], "talk": TALK, "question": "unused"}]
    data = jsonl(folder / "q.jsonl", rows)
    assert samples(data, columns={"images": "pics", "conversation": "talk", "question": "asked"})[0].question == (
        "Which colour?"
    )
    rows = [{"image": "a.png", "conversations": TALK, "question": "Who?", "answer": "x"}]
    assert samples(jsonl(folder / "r.jsonl", rows))[0].question == "Who?"
    with pytest.raises(ConfigError, match="no column 'nowhere'"):
        samples(data, columns={"conversation": "nowhere"})


def test_a_history_of_ones_own(folder: Path) -> None:
    row = {"image": "a.png", "question": "Which colour?", "answer": "grey", "history": [["What?", "A cat."]]}
    others = [row | {"history": [["What?", "A dog."]]}, row | {"history": []}, row | {"system": "Be brief."}]
    found = samples(jsonl(folder / "q.jsonl", [row, *others]))
    assert [sample.history for sample in found[:3]] == [(("What?", "A cat."),), (("What?", "A dog."),), ()]
    assert found[3].system == "Be brief."
    wrong: list[Any] = ["text", [["What?"]], [["What?", ""]], [["What?", None]]]
    for value in wrong:
        with pytest.raises(
            SampleError, match=r"line 1: (history is no list of pairs|an earlier turn in history is empty)"
        ):
            samples(jsonl(folder / "r.jsonl", [row | {"history": value}]))[0]


def test_pictures_on_white(folder: Path) -> None:
    Image.new("RGBA", (2, 2), (0, 0, 0, 0)).save(folder / "clear.png")
    sample = samples(jsonl(folder / "q.jsonl", [{"image": "clear.png", "question": "What?", "answer": "x"}]))[0]
    assert np.asarray(sample.images[0]).min() == 255
