"""``downsampled`` in experiments: a series like others, and the hard questions that it defines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from tests.experiment.test_page import result_of
from tests.support.toy import ToyModel, ToyTask, config
from tokenprune.adapters.llava import LlavaAdapter
from tokenprune.core.references import is_reference
from tokenprune.drawing.palette import GREY, styles
from tokenprune.errors import BudgetError, ConfigError, OutputError, UnsupportedModelError
from tokenprune.experiment import ExperimentConfig, ExperimentResult, markdown, run_experiment, write_report
from tokenprune.experiment.answers import Answers
from tokenprune.experiment.dry_run import plan_experiment
from tokenprune.experiment.paper_table import csv_table
from tokenprune.experiment.part import Part
from tokenprune.experiment.plot import charts_of
from tokenprune.experiment.summary import SeriesSummary, summarise

KEYS = ["downsampled / keep_ratio 0.5", "downsampled / keep_count 2"]


def experiment(output: Path, **changes: Any) -> ExperimentConfig:
    """The toy experiment with smaller pictures beside a method, and without the upper bound."""
    return config(str(output), **{"methods": ["downsampled", "norm-hidden-large"], "oracle": False} | changes)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ExperimentResult]:
    folder = tmp_path_factory.mktemp("downsampled")
    return folder, run_experiment(experiment(folder))


def test_every_budget_is_a_series_with_the_numbers_of_others(finished: tuple[Path, ExperimentResult]) -> None:
    """Four by four tokens: half of them are a picture of two by three, and two are one by two."""
    _, result = finished
    rows = {key: [row for row in result.rows if row["series"] == key] for key in result.answers.keys}
    assert [len(rows[key]) for key in KEYS] == [24, 24]
    like = rows["norm-hidden-large / keep_ratio 0.5"][0]
    for key, tokens in zip(KEYS, (6, 2), strict=True):
        for row, whole in zip(rows[key], rows["unpruned"], strict=True):
            assert row.keys() == like.keys()
            assert (row["method"], row["seed"], row["visual_before"]) == ("downsampled", None, 16)
            assert row["visual_after"] == row["layer_average"] == tokens
            assert row["flops_unpruned"] == whole["flops"]
            assert row["kv_bytes_unpruned"] == whole["kv_bytes"]
            text = 1 + len("abcdefgh"[: 2 + row["position"] % 5])
            assert row["kv_bytes"] * (16 + text) == whole["kv_bytes"] * (tokens + text)
            assert row["flops"] < whole["flops"]
    assert {result.choices[key]["layers"] == [] for key in KEYS} == {True}


def test_answers_are_those_to_smaller_pictures_without_the_experiment(finished: tuple[Path, ExperimentResult]) -> None:
    _, result = finished
    found = {row["position"]: row["prediction"] for row in result.rows if row["series"] == KEYS[0]}
    loaded = ToyModel().load()
    for position, sample in enumerate(ToyTask().samples()[:6]):
        inputs = loaded.encode([sample])
        ids = inputs["input_ids"][0].tolist()
        first = ids.index(150)
        small = torch.tensor([ids[:first] + [150] * 6 + ids[first + 16 :]])
        pixels = inputs["pixel_values"]
        for size in ((16, 24), (32, 32)):
            pixels = functional.interpolate(pixels, size, mode="bicubic", antialias=True)
        inner: Any = loaded.model.model
        with torch.no_grad():
            (features,) = inner.get_image_features(
                pixels, vision_feature_layer=-2, vision_feature_select_strategy="default", return_dict=True
            ).pooler_output
            pooled = functional.adaptive_avg_pool2d(features.T.reshape(1, -1, 4, 4), (2, 3))[0].flatten(1).T
            embeds = loaded.model.get_input_embeddings()(small)
            embeds[small == 150] = pooled
            written = loaded.model.generate(
                inputs_embeds=embeds, attention_mask=torch.ones_like(small), max_new_tokens=2, do_sample=False
            )
        assert found[position] == loaded.decode(written)[0]


def test_a_finished_run_loads_nothing(finished: tuple[Path, ExperimentResult], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, first = finished
    monkeypatch.setattr(ToyModel, "load", lambda self: pytest.fail("the model was loaded"))
    assert run_experiment(experiment(folder)).choices == first.choices
    definition = json.loads((folder / "series.json").read_text())[KEYS[1]]
    assert definition["downsampled"] == {"budget": {"name": "keep_count", "tokens": 2}}
    assert list(definition["code"]) == ["budget 'keep_count'"]


def test_it_can_be_added_to_a_finished_run(finished: tuple[Path, ExperimentResult], tmp_path: Path) -> None:
    _, whole = finished
    run_experiment(experiment(tmp_path, methods=["norm-hidden-large"]))
    result = run_experiment(experiment(tmp_path))
    assert sorted(map(str, result.rows)) == sorted(map(str, whole.rows))
    with pytest.raises(OutputError, match="norm-hidden-large"):  # of another method, and not of this series
        run_experiment(experiment(tmp_path, methods=[{"name": "fastv", "label": "norm-hidden-large"}]))


def test_a_dry_run_shows_it_without_layers(tmp_path: Path) -> None:
    plan = plan_experiment(experiment(tmp_path / "x"))
    assert [(item.key, item.layers, item.batches) for item in plan.series if item.key in KEYS] == [
        (key, (), 5) for key in KEYS
    ]


def test_divergence_times_and_examples(tmp_path: Path) -> None:
    """Examples show patches that were dropped; of a smaller picture none is."""
    result = run_experiment(experiment(tmp_path, divergence=True, timing=1, examples=2), part=Part(limit=6))
    rows = [row for row in result.rows if row["series"] in KEYS]
    assert all(row["divergence"] > 0 for row in rows)
    assert set(KEYS) <= result.timing.keys()
    shown = json.loads((tmp_path / "examples.json").read_text())["examples"]
    assert len(shown) == 2
    assert not any(key in KEYS for item in shown for key in item["series"])
    alone = run_experiment(experiment(tmp_path / "alone", methods=["downsampled"], examples=2), part=Part(limit=5))
    assert len(alone.rows) == 15
    assert json.loads((tmp_path / "alone" / "examples.json").read_text())["examples"] == []


def test_without_labels_it_agrees_or_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hard are then the questions that a smaller picture changes the answer to."""
    monkeypatch.setattr(ToyTask, "label_free", True)
    monkeypatch.setattr(ToyTask, "score", lambda self, sample, text: float(text == sample.answer))
    result = run_experiment(experiment(tmp_path), part=Part(limit=10))
    said = {row["position"]: row["prediction"] for row in result.rows if row["series"] == "unpruned"}
    changed = {
        row["position"]
        for row in result.rows
        if row["series"] == KEYS[1] and row["prediction"] != said[row["position"]]
    }
    assert result.answers.hard_questions("keep_count 2") == changed


# ---- the configuration -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"label": "small"}, "'downsampled' prunes nothing and is always called that: remove label"),
        ({"seeds": [1, 2], "positions": "renumbered"}, "remove seeds, positions"),
        ({"published": True}, "remove published"),
    ],
)
def test_what_it_cannot_have_is_refused(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=words):
        experiment(tmp_path, methods=[{"name": "downsampled", **changes}])


def test_names_that_tables_could_not_tell_apart_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the label 'downsampled' is that of smaller pictures: choose another"):
        experiment(tmp_path, methods=[{"name": "fastv", "label": "Downsampled"}])
    with pytest.raises(ConfigError, match="methods downsampled appear twice"):
        experiment(tmp_path, methods=["downsampled", "downsampled"])


@pytest.mark.parametrize("budget", [{"name": "adaptive"}, {"name": "keep_schedule", "ratios": [0.5, 0.2]}])
def test_budgets_without_one_number_are_refused(budget: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"'downsampled' needs a budget that states one number .* '{budget['name']}"):
        experiment(tmp_path, budgets=[{"name": "keep_ratio", "ratio": 0.5}, budget])
    experiment(tmp_path, methods=["fastv"], budgets=[budget])


def test_what_cannot_run_stops_before_the_first_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for budget, words in (
        ({"name": "keep_count", "tokens": 17}, "'keep_count 17' asks for more than the 16 visual tokens"),
        ({"name": "drop_all"}, "'downsampled' with budget 'drop_all' .*the budget keeps no visual token"),
    ):
        with pytest.raises(BudgetError, match=words):
            run_experiment(experiment(tmp_path / "x", methods=["downsampled"], budgets=[budget]))
    monkeypatch.setattr(LlavaAdapter, "downsampling", lambda self: None)
    with pytest.raises(UnsupportedModelError, match=r"'downsampled' with .*'toy' \(llava\) cannot be shown smaller"):
        run_experiment(experiment(tmp_path / "x"))
    assert not (tmp_path / "x").exists()


# ---- hard questions ----------------------------------------------------------------------------------------------

RIGHT = {
    "unpruned": [1, 1, 1, 0, 1, 1, 1, 0],
    "downsampled": [0, 1, 0, 0, 1, 0, 0, 1],
    "fastv": [1, 0, 0, 1, 1, 1, 1, 0],
    "random": [0, 0, 0, 0, 0, 0, 1, 0],
}
"""Hard are the questions 0, 2, 5 and 6: right with the picture, wrong with a smaller one."""


def by_method(result: ExperimentResult) -> dict[str, SeriesSummary]:
    return {item.method: item for item in summarise(result)}


def test_hard_questions_by_hand() -> None:
    result = result_of(RIGHT)
    assert result.answers.hard_questions("few") == {0, 2, 5, 6}
    found = by_method(result)
    assert {name: item.hard_count for name, item in found.items() if item.budget} == {
        "downsampled": 4,
        "fastv": 4,
        "random": 4,
    }
    hard = {name: item.hard for name, item in found.items()}
    assert hard["unpruned"] is None
    assert hard["fastv"] is not None
    assert hard["fastv"] == result.answers.of("fastv", "few").share({0: 1.0, 2: 0.0, 5: 1.0, 6: 1.0})
    assert hard["fastv"].mean == 0.75
    assert hard["random"] is not None
    assert hard["random"].mean == 0.25
    assert hard["fastv"].high - hard["fastv"].low > 0.5  # four questions say little, and the interval shows it
    text = markdown(result)
    assert "on the pictures as they are: 4 with `few`, of 8" in text
    line = next(line for line in text.splitlines() if line.startswith("| fastv"))
    titles = next(line for line in text.splitlines() if line.startswith("| method"))
    cells = dict(zip(titles.split(" | "), line.split(" | "), strict=True))
    assert cells["hard questions"] == "4"
    assert cells["hard %"].startswith("75 [")
    header, *lines = csv_table({"": list(found.values())}).splitlines()
    values = {line.split(",")[1]: dict(zip(header.split(","), line.split(","), strict=True)) for line in lines}
    assert float(values["fastv"]["hard_percent"]) == 75
    assert float(values["fastv"]["hard_questions"]) == 4
    assert float(values["downsampled"]["hard_percent"]) == 0


def test_intervals_are_clustered_by_picture() -> None:
    alone, together = (by_method(result_of(RIGHT, pictures=count))["fastv"].hard for count in (8, 4))
    assert alone is not None
    assert together is not None
    assert together.mean == alone.mean == 0.75
    assert (together.low, together.high) != (alone.low, alone.high)


def test_each_budget_has_its_own_and_seeds_are_averaged() -> None:
    """Half of the seeds right is right; a method that has not answered all has fewer."""
    rows = []
    for method, budget, seed, scores in (
        ("unpruned", None, None, [1, 1, 1, 0.5]),
        ("downsampled", "a", None, [0, 0.4, 1, 0]),
        ("downsampled", "b", None, [1, 1, 0, 1]),
        ("random", "a", 0, [1, 0, 0, 1]),
        ("random", "a", 1, [1, 1, 0]),
        ("random", "c", 0, [1, 1, 0]),
    ):
        for position, score in enumerate(scores):
            rows.append(
                {
                    "series": f"{method} {budget} {seed}",
                    "method": method,
                    "budget": budget,
                    "seed": seed,
                    "position": position,
                    "prediction": "",
                    "group": str(position),
                    "type": "",
                    "answer": "",
                    "score": score,
                    "visual_before": 4,
                    "visual_after": 2,
                    "layer_average": 2.0,
                    "flops": 1,
                    "flops_unpruned": 1,
                    "kv_bytes": 1,
                }
            )
    result = ExperimentResult("nowhere", Answers.read(rows))
    assert result.answers.hard_questions("a") == {0, 1, 3}
    assert result.answers.hard_questions("b") == {2}
    assert result.answers.hard_questions("c") is None
    found = {(item.method, item.budget): item for item in summarise(result)}
    one = found["random", "a"]
    assert one.hard is not None
    assert (one.hard.mean, one.hard_count) == (pytest.approx((1 + 0.5 + 1) / 3), 3)
    assert found["random", "c"].hard is None


def test_without_smaller_pictures_there_is_no_column() -> None:
    text = markdown(result_of({name: scores for name, scores in RIGHT.items() if name != "downsampled"}))
    assert "hard" not in text
    none = by_method(result_of({"unpruned": [1, 1], "downsampled": [1, 1], "fastv": [1, 0]}))["fastv"]
    assert none.hard is None  # no question is hard: the count says so
    assert none.hard_count == 0


def test_it_is_compared_with_and_no_method(tmp_path: Path) -> None:
    assert is_reference("downsampled")
    assert styles(["downsampled", "fastv"])["downsampled"].colour == GREY
    result = result_of(RIGHT)
    assert {point.method: point.role for point in charts_of(summarise(result)).points} == {
        "downsampled": "smaller",
        "fastv": "method",
        "random": "random",
    }
    report = ExperimentResult(str(tmp_path), result.answers)
    write_report(report)
    assert "hard questions" in (tmp_path / "report.md").read_text()
    assert json.loads((tmp_path / "summary.json").read_text())[1]["hard_count"] == 4
