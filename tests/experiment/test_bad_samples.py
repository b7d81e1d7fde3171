"""Samples that cannot be used: reported once, counted, in no figure. One bad line ends no run."""

from __future__ import annotations

import gc
import json
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
from PIL import Image
from torch import Tensor

from tests.support.toy import ToyModel, ToyTask, completed, config
from tokenprune.core.component import FromRegistry
from tokenprune.errors import OutputError, SampleError
from tokenprune.experiment import ExperimentResult, markdown, run_experiment
from tokenprune.experiment.part import Part
from tokenprune.experiment.results import Results
from tokenprune.models.base import LoadedModel
from tokenprune.tasks.base import Sample

BAD: set[int] = set()


class Lines(Sequence[Sample]):
    """Samples that are read when they are asked for; those in BAD cannot be."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: Any) -> Any:
        if index in BAD:
            raise SampleError(f"data.jsonl, line {index + 1}: image 'a{index}.png' does not exist", "check the path")
        return self.samples[index]


class LinesTask(ToyTask):
    """The toy task, lazily."""

    def samples(self) -> Sequence[Sample]:
        return Lines(super().samples())


@pytest.mark.slow
def test_a_folder_belongs_to_one_meaning_of_answers(tmp_path: Path) -> None:
    """The same rows with another ``answer_is`` have other right answers."""
    Image.effect_noise((32, 32), 90).convert("RGB").save(tmp_path / "a.png")
    row = {"image": "a.png", "question": "abc", "choices": ["w1", "w2", "w3"], "answer": 1}
    (tmp_path / "q.jsonl").write_text(json.dumps(row) + "\n" + json.dumps(row | {"question": "d"}), encoding="utf-8")
    task = {"name": "vqa", "data": str(tmp_path / "q.jsonl"), "answer_is": "index0"}
    run_experiment(config(str(tmp_path / "out"), task=task, methods=["random"]))
    with pytest.raises(OutputError, match="answer_is"):
        run_experiment(config(str(tmp_path / "out"), task=task | {"answer_is": "index1"}, methods=["random"]))


@pytest.fixture
def bad() -> Any:
    BAD.clear()
    yield BAD.update
    BAD.clear()


def test_bad_samples_are_left_out_and_named(tmp_path: Path, bad: Callable[..., None]) -> None:
    bad({0, 3, *range(10, 15)})  # the first one, one more, and a whole batch
    result = run_experiment(config(str(tmp_path), task=LinesTask()))
    assert {row["position"] for row in result.rows} == set(range(24)) - BAD
    assert sorted(result.skipped) == sorted(BAD)
    text = markdown(result)
    assert "7 samples could not be used; no figure counts them:** data.jsonl, line 1: image 'a0.png' does not" in text
    assert "; and 2 more, see skipped.jsonl" in text
    assert "17 questions" in text
    assert Results(tmp_path).skipped_samples().keys() == BAD
    before = (tmp_path / "samples.jsonl").read_bytes()
    again = run_experiment(config(str(tmp_path), task=LinesTask()))  # finished: it only reads
    assert (tmp_path / "samples.jsonl").read_bytes() == before
    assert markdown(again) == text


@pytest.mark.slow
def test_a_repaired_sample_is_used(tmp_path: Path, bad: Callable[..., None]) -> None:
    completed(tmp_path / "whole", task=LinesTask())
    bad({3, 7})
    run_experiment(config(str(tmp_path / "out"), task=LinesTask()))
    BAD.clear()
    result = run_experiment(config(str(tmp_path / "out"), task=LinesTask()))
    assert not result.skipped
    rows = {(row["series"], row["position"]): row for row in result.rows}
    assert rows == {(row["series"], row["position"]): row for row in Results(tmp_path / "whole").rows()}


@pytest.mark.slow
def test_a_sample_that_is_lost_later_is_in_no_figure(tmp_path: Path, bad: Callable[..., None]) -> None:
    """Every method of a table answered the same questions."""
    run_experiment(config(str(tmp_path), task=LinesTask(), methods=["norm-hidden-large"]))
    bad({3})
    both = ["norm-hidden-large", "norm-hidden-small"]
    result = run_experiment(config(str(tmp_path), task=LinesTask(), methods=both))
    for answers in result.answers.series.values():
        assert sorted(answers.positions) == sorted(set(range(24)) - {3})


def test_strict_makes_it_an_error(tmp_path: Path, bad: Callable[..., None]) -> None:
    bad({7})
    with pytest.raises(SampleError, match=r"data\.jsonl, line 8: .* check the path"):
        run_experiment(config(str(tmp_path), task=LinesTask(), strict=True))
    assert {row["position"] for row in Results(tmp_path).rows()} == set(range(5))  # what was answered stays


def test_no_sample_at_all_is_an_error(tmp_path: Path, bad: Callable[..., None]) -> None:
    bad(set(range(24)))
    with pytest.raises(SampleError, match=r"none of the first 24 samples can be used; the first: data.jsonl, line 1"):
        run_experiment(config(str(tmp_path / "out"), task=LinesTask()))
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_picture_that_the_processor_refuses_is_a_bad_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load = ToyModel.load

    def picky(self: ToyModel) -> LoadedModel:
        loaded = load(self)
        encoder = loaded.encoder

        def encode(samples: Sequence[Sample]) -> dict[str, Tensor]:
            if any(sample.id == "s8" for sample in samples):
                raise ValueError("absolute aspect ratio must be smaller than 200")
            return encoder(samples)

        return replace(loaded, encoder=encode)

    monkeypatch.setattr(ToyModel, "load", picky)
    result = run_experiment(config(str(tmp_path)))
    assert list(result.skipped) == [8]
    assert "sample 's8' cannot be encoded (ValueError: absolute aspect" in result.skipped[8]
    assert len({row["position"] for row in result.rows}) == 23
    monkeypatch.setattr(ToyModel, "load", lambda self: pytest.fail("the run is finished"))
    assert run_experiment(config(str(tmp_path))).skipped == result.skipped  # the model refuses it again: not tried


@pytest.mark.parametrize("change", ["edit", "insert", "append", "repair"])
def test_data_that_change_between_two_runs(tmp_path: Path, change: str) -> None:
    """Answers to other questions are never taken for answers to these."""
    for number in range(4):
        Image.new("RGB", (32, 32), (60 * number, 0, 0)).save(tmp_path / f"{number}.png")
    rows = [{"image": f"{number}.png", "question": "abc", "answer": "w2"} for number in range(4)]
    rows[1]["image"] = "missing.png"
    data, out = tmp_path / "q.jsonl", str(tmp_path / "out")

    def run() -> ExperimentResult:
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        task = FromRegistry("tasks").build({"name": "vqa", "data": str(data)})
        return run_experiment(config(out, task=task, batch_size=2))

    assert list(run().skipped) == [1]
    match change:
        case "edit":
            rows[2]["question"] = "abd"
        case "insert":
            rows.insert(0, dict(rows[3]))
        case "append":
            rows.append(dict(rows[3]))
        case "repair":
            rows[1]["image"] = "1.png"
    if change in ("edit", "insert"):
        with pytest.raises(OutputError, match=r"sample [13] of the data is another one than when .*out was written"):
            run()
    else:
        result = run()
        assert {row["position"] for row in result.rows} == ({0, 2, 3, 4} if change == "append" else {0, 1, 2, 3})


class Counting(Lines):
    """Counts which samples were read."""

    read: ClassVar[list[int]] = []

    def __getitem__(self, index: Any) -> Any:
        self.read.append(index)
        return super().__getitem__(index)


def test_samples_are_read_batch_by_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LinesTask, "samples", lambda self: Counting(ToyTask.samples(self)))
    Counting.read.clear()
    read_at: list[int] = []
    run_experiment(
        config(str(tmp_path), task=LinesTask(), examples=0),
        lambda name, done, total: read_at.append(max(Counting.read)),
        Part(limit=10),
    )
    assert read_at == [4] * 9 + [9] * 9  # nothing ahead of the batch in work
    assert sorted(Counting.read) == sorted([0, *range(10)])  # the first one is tried out


class Unlabelled(ToyTask):
    """The toy's pictures without answers."""

    @property
    def label_free(self) -> bool:
        return True

    def samples(self) -> Sequence[Sample]:
        return [replace(sample, answer="", foreground=()) for sample in super().samples()]

    def score(self, sample: Sample, text: str) -> float:
        return float(text in sample.references)


@pytest.mark.slow
def test_without_labels_the_unpruned_answers_are_the_reference(tmp_path: Path) -> None:
    result = run_experiment(config(str(tmp_path), task=Unlabelled()))
    rows = result.rows
    unpruned = {row["position"]: row["prediction"] for row in rows if row["method"] == "unpruned"}
    for row in rows:
        assert row["score"] == (row["prediction"] == unpruned[row["position"]])
    assert {row["score"] for row in rows} == {0.0, 1.0}  # the toy's answers change when it is pruned
    text = markdown(result)
    assert "agreement %" in text
    assert "accuracy %" not in text
    assert "The task has no answers" in text
    assert "The method `oracle` was left out: the task does not say which pixels show the objects." in text
    assert "tell methods apart" not in text
    more = run_experiment(config(str(tmp_path), task=Unlabelled(), methods=["norm-hidden-small"])).rows
    for row in more:  # the unpruned answers come from the folder now
        assert row["score"] == (row["prediction"] == unpruned[row["position"]])


@pytest.mark.slow
def test_agreement_is_counted_for_every_task(tmp_path: Path) -> None:
    result = completed(tmp_path)
    rows = result.rows
    unpruned = {row["position"]: row["prediction"] for row in rows if row["method"] == "unpruned"}
    for method, budget in result.answers.methods():
        mine = [row for row in rows if (row["method"], row["budget"] or "") == (method, budget)]
        shares = result.answers.of(method, budget).agreement_by_question()
        expected = sum(row["prediction"] == unpruned[row["position"]] for row in mine) / len(mine)
        assert sum(shares.values()) / len(shares) == pytest.approx(expected)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_pictures(tmp_path: Path) -> None:
    """Some hundred bytes per question remain, for two series; a toy picture alone has 3,072."""

    def used(count: int) -> int:
        """Bytes in use after the last answer."""
        sizes = []

        def progress(name: str, done: int, total: int) -> None:
            if done == total:
                gc.collect()
                sizes.append(tracemalloc.get_traced_memory()[0])

        few = {"methods": ["random"], "budgets": [{"name": "keep_count", "tokens": 2}], "oracle": False}
        whole = config(str(tmp_path / str(count)), task=Endless(questions=count), batch_size=10, **few)
        tracemalloc.start()
        result = run_experiment(whole, progress)
        gc.collect()
        sizes.append(tracemalloc.get_traced_memory()[0])  # with the answers that the tables are made from
        tracemalloc.stop()
        assert len(result.answers.series) == 2
        return max(sizes)

    used(10)  # imports
    assert (used(120) - used(20)) / 100 < 1000


class Endless(ToyTask):
    """A sample is made when it is asked for."""

    def samples(self) -> Sequence[Sample]:
        class Made(Lines):
            def __len__(self) -> int:
                return count

            def __getitem__(self, index: Any) -> Any:
                sample = ToyTask(questions=2).samples()[index % 2]
                return replace(sample, id=f"s{index}", group=f"g{index}")

        count = self.questions
        return Made([])
