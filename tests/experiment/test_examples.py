"""The examples of a report: which samples, what is kept of them, and that a run which goes on needs no model twice."""

from __future__ import annotations

import io
import json
from base64 import b64decode
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import tokenprune as tp
from tests.support.toy import ToyModel, ToyTask, completed, config
from tokenprune.adapters.generic import GenericAdapter
from tokenprune.experiment import run_experiment, write_report
from tokenprune.experiment.answering import Answering
from tokenprune.experiment.answers import Answers
from tokenprune.experiment.asking import Asking
from tokenprune.experiment.examples import encoded, for_report, most_changed, stored, with_answers
from tokenprune.experiment.results import Results
from tokenprune.output.lines import Row


def row(method: str, position: int, said: str, seed: int | None = None, group: str | None = None) -> Row:
    return {
        "series": f"{method} {seed}",
        "method": method,
        "budget": None if method == "unpruned" else "b",
        "seed": seed,
        "position": position,
        "sample": f"s{position}",
        "type": "t",
        "group": group or f"g{position}",
        "answer": "yes",
        "prediction": said,
        "score": float(said == "yes"),
        "layer_average": 4.0,
        "visual_before": 16,
        "visual_after": 4,
        "flops": 1,
        "flops_unpruned": 2,
        "kv_bytes": 1,
    }


def test_the_worst_are_those_that_most_methods_changed_one_per_picture() -> None:
    said = {
        "unpruned": ["yes", "yes", "yes", "yes", "yes"],
        "one": ["yes", "no", "no", "no", "yes"],
        "two": ["yes", "yes", "no", "no", "yes"],
        "random": ["no", "no", "yes", "no", "no"],
    }
    groups = ["a", "b", "c", "c", "a"]  # positions 2 and 3 are equally bad and about one picture
    rows = [row(method, at, text, group=groups[at]) for method, texts in said.items() for at, text in enumerate(texts)]
    assert most_changed(Answers.read(rows), 10) == [2, 1, 0]
    assert most_changed(Answers.read(rows), 1) == [2]
    assert most_changed(Answers.read(rows), 0) == []
    chance = [item for item in rows if item["method"] in ("unpruned", "random")]
    assert most_changed(Answers.read(chance), 10) == [0, 1, 3]


def test_those_that_the_unpruned_model_gets_wrong_stand_behind_those_that_it_gets_right() -> None:
    said = {
        "unpruned": ["no", "yes", "yes", "yes", "no"],
        "one": ["yes", "yes", "no", "yes", "no"],
        "two": ["yes", "no", "no", "yes", "no"],
    }
    rows = [row(method, at, text, group=str(at)) for method, texts in said.items() for at, text in enumerate(texts)]
    # 2 and 1 were right, 0 was wrong from the start; nobody changed 3 and 4
    assert most_changed(Answers.read(rows), 10) == [2, 1, 0, 3, 4]
    assert most_changed(Answers.read(rows), 1) == [2]


def test_a_seed_counts_by_its_share() -> None:
    rows = [row("unpruned", at, "yes") for at in range(2)]
    rows += [
        row("one", at, text, seed)
        for seed, texts in enumerate([["no", "no"], ["yes", "no"]])
        for at, text in enumerate(texts)
    ]
    assert most_changed(Answers.read(rows), 2) == [1, 0]


def test_what_the_unpruned_model_has_not_answered_is_no_disagreement() -> None:
    """A run that was stopped: the method is ahead."""
    rows = [row("unpruned", 0, "yes"), row("one", 0, "yes"), row("one", 1, "no")]
    answers = Answers.read(rows)
    assert answers.of("one", "b").agreement_by_question() == {0: 1.0}
    assert most_changed(answers, 2) == [0]


@torch.no_grad()
def test_what_is_stored_is_what_each_method_keeps_of_the_sample_alone(tmp_path: Path) -> None:
    settings = config(str(tmp_path), examples=4)
    result = run_experiment(settings)
    found, reason = stored(Results(tmp_path))
    assert reason is None
    assert list(found) == most_changed(result.answers, 4)
    loaded, samples = ToyModel().load(), ToyTask().samples()
    for position, item in found.items():
        assert set(item["series"]) == {
            f"{name} / {budget}"
            for budget in ("keep_ratio 0.5", "keep_count 2")
            for name in ("norm-hidden-large", "oracle")
        } | {f"random / {budget} / seed 0" for budget in ("keep_ratio 0.5", "keep_count 2")}
        method = tp.load_method("norm-hidden-large", keep_tokens=2)
        with tp.apply(loaded.model, method) as run:
            loaded.model(**loaded.encode([samples[position]]))
        kept = [int(place) - 1 for place in run.stages[0].kept[0]]  # one text token comes first
        (stage,) = item["series"]["norm-hidden-large / keep_count 2"]
        assert (
            np.unpackbits(np.frombuffer(b64decode(stage["kept"]), dtype=np.uint8), count=16).nonzero()[0].tolist()
            == kept
        )
        (view,) = item["views"]
        assert (view["rows"], view["columns"], view["box"]) == (4, 4, [0, 0, 1, 1])
        assert item["cells"] == [[0, at // 4, at % 4] for at in range(16)]
        small = Image.open(io.BytesIO(b64decode(item["pictures"][0])))
        assert small.size == (32, 32)


@pytest.mark.slow
def test_examples_have_the_answers_of_all_methods(tmp_path: Path) -> None:
    result = run_experiment(config(str(tmp_path), examples=3))
    shown = with_answers(stored(Results(tmp_path))[0], result.rows)
    assert len(shown) == 3
    rows = {(item["series"], item["sample"]): item for item in result.rows}
    for example in shown:
        assert example.expected == "w"
        unpruned = rows["unpruned", example.title]
        assert [panel.method for panel in example.panels].count("unpruned") == 1
        assert len(example.panels) == 1 + 2 * 3
        for panel in example.panels:
            budget = f" / {panel.budget}" if panel.budget else ""
            seed = " / seed 0" if panel.method == "random" else ""
            expected = rows[f"{panel.method}{budget}{seed}", example.title]
            assert panel.answer == expected["prediction"]
            assert panel.right == (expected["score"] == 1.0)
            if panel.method == "unpruned":
                assert panel.agrees is None
                assert panel.look.kept.all()
            else:
                assert panel.agrees == (panel.answer == unpruned["prediction"])
                assert panel.look.kept.sum() == expected["visual_after"]


@pytest.mark.slow
def test_what_is_there_is_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[int] = []
    looked: list[int] = []
    answered: list[int] = []
    load, look, answer = ToyModel.load, Answering.look, Asking.answer
    monkeypatch.setattr(ToyModel, "load", lambda self: (loads.append(1), load(self))[1])
    monkeypatch.setattr(Answering, "look", lambda self, item, batch: (looked.append(1), look(self, item, batch))[1])
    monkeypatch.setattr(Asking, "answer", lambda self, item, works: (answered.append(1), answer(self, item, works))[1])
    run_experiment(config(str(tmp_path), examples=2))
    assert len(looked) == 2 * 6
    before = (tmp_path / "examples.json").read_bytes()
    for calls in (loads, looked, answered):
        calls.clear()
    run_experiment(config(str(tmp_path), examples=2))
    assert not loads
    run_experiment(config(str(tmp_path), examples=1))  # fewer: those that are not wanted go
    assert not loads
    assert list(stored(Results(tmp_path))[0]) == [json.loads(before)["examples"][0]["position"]]
    run_experiment(config(str(tmp_path), examples=2))  # more: only the pictures are made
    assert loads
    assert looked
    assert not answered
    assert (tmp_path / "examples.json").read_bytes() == before
    (tmp_path / "examples.json").write_text("{")
    run_experiment(config(str(tmp_path), examples=2))  # as after a kill
    assert not answered
    assert (tmp_path / "examples.json").read_bytes() == before


@pytest.mark.slow
def test_no_examples(tmp_path: Path) -> None:
    run_experiment(config(str(tmp_path), examples=0))
    assert stored(Results(tmp_path)) == ({}, None)


@pytest.mark.slow
def test_a_family_without_a_grid_has_a_report_that_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere(self: Any, call: Any, layout: Any) -> None:
        return None

    monkeypatch.setattr("tokenprune.adapters.image_video.ImageVideoAdapter.placed", nowhere)
    assert GenericAdapter.placed is not nowhere
    result = run_experiment(config(str(tmp_path), examples=1))
    found, reason = stored(Results(tmp_path))
    assert not found
    assert reason is not None
    assert "knows no token grid" in reason
    page = next(path for path in write_report(result) if path.name == "report.html").read_text(encoding="utf-8")
    assert "There are no example pictures" in page
    run_experiment(config(str(tmp_path), examples=1))  # finished: nothing is tried again


@pytest.mark.parametrize(("count", "side"), [(1, 448), (2, 256), (8, 160), (40, 96), (100, 64)])
def test_many_pictures_are_small(count: int, side: int) -> None:
    picture = np.zeros((600, 900, 3), dtype=np.uint8)
    assert max(Image.open(io.BytesIO(encoded([picture] * count)[-1])).size) == side


@pytest.mark.slow
@pytest.mark.parametrize(
    "damage",
    [
        lambda item: item.pop("views"),
        lambda item: item.update(cells=None),
        lambda item: item["cells"].__setitem__(0, [0, 99, 0]),
        lambda item: item.update(pictures=["%%"]),
        lambda item: next(iter(item["series"].values()))[0].update(kept=""),
    ],
)
def test_a_damaged_file_is_said_in_the_report_and_made_again_by_a_run(tmp_path: Path, damage: Any) -> None:
    few = {"examples": 1, "methods": ["random"], "budgets": [{"name": "keep_count", "tokens": 2}]}
    result = completed(tmp_path, **few)
    whole = (tmp_path / "examples.json").read_bytes()
    data = json.loads(whole)
    damage(data["examples"][0])
    (tmp_path / "examples.json").write_text(json.dumps(data))
    found, reason = for_report(Results(tmp_path))
    assert not found
    assert reason is not None
    assert reason.startswith("examples.json is damaged (")
    write_report(result)
    assert "There are no example pictures: examples.json is damaged" in (tmp_path / "report.html").read_text()
    run_experiment(config(str(tmp_path), **few))
    assert (tmp_path / "examples.json").read_bytes() == whole
