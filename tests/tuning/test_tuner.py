"""Tuning on models in which the best candidate is known; kill and resume; what is refused before anything runs."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import tokenprune as tp
from tests.support.processes import started
from tests.support.simple import CASE, fastv
from tests.support.tiny import CASES
from tests.support.toy import ToyModel, ToyTask
from tests.support.toy import config as experiment
from tests.tuning.planted import BUDGET, Place, config, method, planted, run_slowly
from tokenprune.budgets.label import in_words
from tokenprune.errors import (
    BudgetError,
    BusyModelError,
    ConfigError,
    MissingDataError,
    OutputError,
    SampleError,
    UnknownNameError,
    UnsupportedFeatureError,
)
from tokenprune.experiment import run_experiment
from tokenprune.tuning import run_tune


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]


# ---- planted winners ----


def test_the_candidate_that_keeps_what_matters_wins() -> None:
    model, samples = planted(32)
    named = [method(Place(keep="matter"), "planted"), method(Place(), "opposite"), "visionzip"]
    result = tp.tune(model, samples, BUDGET, named)
    assert result.best.name == "planted"
    assert result.beats_random
    assert result.best.agreement.mean == 1
    assert result.best.divergence.high < 1e-6
    opposite = next(row for row in result.ranked if row.name == "opposite")
    assert opposite.difference.low > 0
    assert not opposite.tied
    assert result.best.average == pytest.approx(8)
    assert result.sentence.startswith("planted (agreement ")
    assert "random: layer 0 loses by" in result.sentence


@pytest.mark.usefixtures("place_installed")
def test_a_scorer_of_a_plugin_is_tuned(tmp_path: Path) -> None:
    """Its variants are candidates by the annotation beside its field: the one that is not its own value wins."""
    file = tmp_path / "theirs.yaml"
    own = method(Place(), "theirs").model_dump(mode="json", exclude={"label"})
    assert own["pruner"]["scorer"]["name"] == "place"
    file.write_text(yaml.safe_dump({"description": "Theirs.", "method": own}))
    model, samples = planted()
    result = tp.tune(model, samples, BUDGET, [str(file)])
    assert result.best.name == "theirs: keep matter"
    assert result.best.origin == "variant"
    own_values = next(row for row in result.ranked if row.name == "theirs")
    assert own_values.difference.low > 0


def test_all_named_methods_are_candidates_by_default() -> None:
    model, samples = planted(4)
    result = tp.tune(model, samples, BUDGET, first=2)
    names = {row.name.partition(":")[0] for row in result.ranked}
    assert {"visionzip", "fastv", "entropyprune", "random"} <= names
    assert any(row.origin == "composition" for row in result.ranked)
    assert not {"oracle", "norm-hidden-large"} & names
    assert all(row.average <= 8 + 1e-6 for row in result.ranked)
    without = tp.tune(model, samples, BUDGET, first=2, compositions=False)
    assert not any(row.origin == "composition" for row in without.ranked)


def test_nothing_beats_random() -> None:
    """Three seeds of random, under other names: whoever is first, it says so."""
    model, samples = planted(16)
    others = [method({"name": "random", "seed": seed}, f"chance {seed}") for seed in (1, 2)]
    result = tp.tune(model, samples, BUDGET, others)
    assert not result.beats_random
    assert result.sentence.startswith("nothing beats random at equal cost: ")


def test_random_methods_of_the_user_keep_their_seed() -> None:
    """The tune's seed is that of the random candidates that it adds itself."""
    model, samples = planted(4)
    mine = method({"name": "random", "seed": 3}, "mine")
    result = tp.tune(model, samples, BUDGET, [mine, method(Place(), "late", layer=1)], seed=5)
    seeds = {row.name: row.method.pruner.scorer.seed for row in result.ranked if row.random}  # type: ignore[attr-defined]
    assert seeds.pop("mine") == 3
    assert "random: layer 1" in seeds
    assert set(seeds.values()) == {5}


def test_random_runs_before_the_layers_of_every_candidate() -> None:
    model, samples = planted(4)
    late = [method(Place(), "late", layer=1), method(Place(keep="matter"), "late, too", layer=1)]
    result = tp.tune(model, samples, BUDGET, late)
    chance = [row.method.layers.layers for row in result.ranked if row.random]  # type: ignore[attr-defined]
    assert {(0,), (1,)} <= set(chance)
    assert chance.count((1,)) == 1


@pytest.mark.parametrize("objective", ["root_divergence", "agreement", "divergence", "distance"])
def test_each_objective_finds_the_planted_one(objective: Any) -> None:
    model, samples = planted()
    result = tp.tune(model, samples, BUDGET, [method(Place(keep="matter"), "planted")], objective=objective)
    assert result.best.name == "planted"
    assert result.setup.goal == objective
    found = result.best.samples
    losses = {
        "agreement": 1 - found.agreement,
        "divergence": found.divergence,
        "root_divergence": found.divergence.sqrt(),
        "distance": found.distance,
    }
    assert result.best.loss.mean == pytest.approx(losses[objective].mean().item())


def test_several_tokens_of_the_answer() -> None:
    model, samples = planted(4)
    one, three = (
        tp.tune(model, samples, BUDGET, [method(Place(), "opposite")], tokens=tokens, first=2).ranked
        for tokens in (1, 3)
    )
    assert [row.loss for row in one] != [row.loss for row in three]


def test_the_flops_of_candidates_can_be_equal() -> None:
    model, samples = planted(4)
    named = [method(Place(keep="matter"), "early"), method(Place(keep="matter"), "later", layer=1)]
    result = tp.tune(model, samples, {"name": "flops_reduction", "percent": 20, "scope": "decoder"}, named, first=2)
    flops = {row.name: row.flops for row in result.ranked}
    assert 0.7 < flops["early"] <= 0.8
    assert 0.7 < flops["later"] <= 0.8


# ---- the chosen method ----


def test_the_chosen_method_is_used_everywhere(tmp_path: Path) -> None:
    model, samples = planted()
    result = tp.tune(model, samples, BUDGET, ["fastv", "visionzip"], output=tmp_path / "tune")
    path = tmp_path / "tune" / "tuned.yaml"
    loaded = tp.load_method(str(path))
    assert loaded == result.method == tp.load_method(path)
    with tp.apply(model, loaded) as run, torch.no_grad():
        model(**samples[0])
    assert run.report.layer_average() <= 8
    lower = tp.load_method(str(path), average_ratio=0.4)
    assert lower.budget.ratio == 0.4  # type: ignore[attr-defined]
    methods = [str(path), {"name": str(path), "label": "again"}]
    found = run_experiment(experiment(str(tmp_path / "run"), methods=methods, oracle=False))
    assert {row["method"] for row in found.rows} == {"unpruned", "tuned", "again"}
    with pytest.raises(MissingDataError, match=r"method 'gone': no such config file: gone\.yaml"):
        list(experiment(str(tmp_path / "x"), methods=["gone.yaml"]).series())


def test_the_file_says_where_it_comes_from(tmp_path: Path) -> None:
    run_tune(config(str(tmp_path), methods=["visionzip"]))
    data = yaml.safe_load((tmp_path / "tuned.yaml").read_text())
    for words in ("tokenprune ", "for toy on 16 samples of", "without labels", "50 % of the tokens, layer average"):
        assert words in data["description"]
    named = data["method"]["label"].partition(":")[0]
    assert ("VisionZip" in data.get("paper", "")) == (named == "visionzip")


def test_the_files(tmp_path: Path) -> None:
    result = run_tune(config(str(tmp_path), budgets=[BUDGET, {"name": "layer_average", "tokens": 6}], budget=None))
    names = {path.name for path in result.written}
    assert names == {
        "tuned-layer_average-0.5.yaml",
        "tuned-layer_average-6.yaml",
        "report.md",
        "tune.jsonl",
        "report.html",
        "run.json",
        "tune.png",
        "tune.svg",
        "tune.pdf",
    }
    rows = [json.loads(line) for line in (tmp_path / "tune.jsonl").read_text().splitlines()]
    assert {row["budget"] for row in rows} == {"layer_average 0.5", "layer_average 6"}
    for row in rows:
        if "refused" not in row:
            assert len(row["samples"]["divergence"]) == row["seen"] == len(row["samples"]["loss"])
    report = (tmp_path / "report.md").read_text()
    for ranking in result.rankings:
        assert f"## {in_words(ranking.budget)}" in report
    with pytest.raises(ConfigError, match="the tune has 2 budgets"):
        _ = result.method
    assert [row.average for row in result.front] == sorted(row.average for row in result.front)
    assert [row.loss.mean for row in result.front] == sorted((row.loss.mean for row in result.front), reverse=True)
    assert str(result).count("candidate ") == 2
    html = result._repr_html_()
    assert html.count("<table>") == 2
    assert "data:image/png;base64," in html
    assert "layer average" in html


def test_a_result_is_saved_elsewhere(tmp_path: Path) -> None:
    model, samples = planted(4)
    result = tp.tune(model, samples, BUDGET, ["fastv"])
    assert result.folder is None
    written = result.save(tmp_path / "deep" / "folder")
    names = {"tuned.yaml", "report.md", "tune.jsonl", "run.json", "report.html", "tune.png", "tune.svg", "tune.pdf"}
    assert {path.name for path in written} == names
    assert tp.load_method(written[0]) == result.method


# ---- labels ----


class Odd(ToyTask):
    """Half of the first words are right, so the score and the agreement with the unpruned model differ."""


def test_with_labels_the_score_is_compared(tmp_path: Path) -> None:
    found = run_tune(config(str(tmp_path), task=Odd(), labels=True, methods=["fastv"], samples=8))
    assert found.setup.goal == "score"
    for row in found.ranked:
        assert row.loss.mean in {count / row.seen for count in range(row.seen + 1)}
    assert "with their answers, by the score" in (tmp_path / "tuned.yaml").read_text().replace("\n  ", " ")
    again = run_tune(config(str(tmp_path), task=Odd(), labels=True, methods=["fastv"], samples=8))
    assert [(row.name, row.loss) for row in again.ranked] == [(row.name, row.loss) for row in found.ranked]


@torch.no_grad()
def test_scores_are_those_of_the_answers_of_the_pruned_model(tmp_path: Path) -> None:
    """Generated here, batch by batch, and scored by the task."""
    found = run_tune(config(str(tmp_path), task=Odd(), labels=True, methods=["fastv"], samples=8))
    loaded, samples = ToyModel().load(), list(Odd().calibration(8))
    model: Any = loaded.model
    row = next(row for row in found.ranked if not row.random and row.left is None)
    scores = []
    for start in (0, 4):
        inputs = loaded.encode(samples[start : start + 4])
        with tp.apply(model, row.method):
            ids = model.generate(**inputs, max_new_tokens=4, do_sample=False)[:, inputs["input_ids"].shape[1] :]
        texts = zip(samples[start : start + 4], loaded.decode(ids), strict=True)
        scores += [Odd().score(sample, text) for sample, text in texts]
    assert row.losses.tolist() == [1 - score for score in scores]
    assert row.samples.score is not None
    assert row.samples.score.tolist() == scores


# ---- kill and resume ----


@pytest.mark.slow
def test_killed_at_any_moment_it_goes_on(tmp_path: Path) -> None:
    """SIGKILL at random moments: the same rows and the same files as a tune in one go."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run_tune(config(str(whole)))
    rng = random.Random(0)
    total = len(lines(whole))
    for _ in range(3):
        with started(run_slowly, killed) as job:
            for _ in range(rng.randint(3, 9)):
                job.step()
        assert 0 < len((killed / "samples.jsonl").read_text().splitlines()) < total
    with (killed / "samples.jsonl").open("a") as file:  # as if the last write had been cut in the middle
        file.write('{"budget": "layer_average 0.5", "candid')
    run_tune(config(str(killed)))

    def canonical(folder: Path) -> list[str]:
        return sorted(json.dumps(row, sort_keys=True) for row in lines(folder))

    assert canonical(killed) == canonical(whole)
    for name in ("tuned.yaml", "tune.jsonl", "report.md"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes()


def test_a_finished_tune_only_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = run_tune(config(str(tmp_path)))
    rows = (tmp_path / "samples.jsonl").read_bytes()
    monkeypatch.setattr("tokenprune.engine.trials.measuring.UnprunedBatch", None)
    after = run_tune(config(str(tmp_path)))
    assert (tmp_path / "samples.jsonl").read_bytes() == rows
    assert after.ranked == before.ranked


@pytest.mark.parametrize(
    ("key", "value"), [("agreement", "x"), ("flops", [1.0]), ("distance", ["a"] * 4), ("batch", "0")]
)
def test_damaged_rows_and_curves_are_measured_again(tmp_path: Path, key: str, value: Any) -> None:
    before = run_tune(config(str(tmp_path), methods=["fastv"]))
    rows = lines(tmp_path)
    changed = [{**row, key: value} if number == 1 else row for number, row in enumerate(rows)]
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in changed))
    (tmp_path / "entropy.json").write_text("{")
    after = run_tune(config(str(tmp_path), methods=["fastv"]))
    assert after.ranked == before.ranked
    assert sorted(map(str, lines(tmp_path))) == sorted(map(str, rows))


def test_candidates_and_budgets_may_be_added(tmp_path: Path) -> None:
    run_tune(config(str(tmp_path), methods=["fastv"]))
    before = lines(tmp_path)
    run_tune(config(str(tmp_path), methods=["fastv", "visionzip"]))
    assert lines(tmp_path)[: len(before)] == before


# ---- bad input ----


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seed": 1}, r"holds results with other settings \(seed: 0 there, 1 now\)"),
        ({"task": ToyTask(questions=30, split="other")}, r"holds results with other settings \(task"),
    ],
)
def test_another_tune_in_the_folder_is_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    run_tune(config(str(tmp_path)))
    with pytest.raises(OutputError, match=words):
        run_tune(config(str(tmp_path), **changes))


@pytest.mark.slow
def test_another_model_or_other_samples_in_the_folder_are_refused(tmp_path: Path) -> None:
    model, samples = planted(8)
    tp.tune(model, samples, BUDGET, ["fastv"], output=tmp_path)
    with pytest.raises(OutputError, match="holds a tune on other samples"):
        tp.tune(model, samples[1:], BUDGET, ["fastv"], output=tmp_path)
    with torch.no_grad():
        model.lm_head.weight.mul_(2)
    with pytest.raises(OutputError, match=r"holds results of another model .* there, fingerprint 2-\w+"):
        tp.tune(model, samples, BUDGET, ["fastv"], output=tmp_path)


def test_a_folder_that_is_no_path_is_refused() -> None:
    model, samples = planted(4)
    with pytest.raises(OutputError, match="output folder is int; give its path"):
        tp.tune(model, samples, BUDGET, ["fastv"], output=5)  # type: ignore[arg-type]


def test_the_folder_of_an_experiment_is_refused(tmp_path: Path) -> None:
    run_experiment(experiment(str(tmp_path), methods=["random"], oracle=False))
    with pytest.raises(OutputError, match="holds results that are not those of a tune"):
        run_tune(config(str(tmp_path)))


def test_a_name_with_another_definition_is_refused(tmp_path: Path) -> None:
    model, samples = planted(4)
    tp.tune(model, samples, BUDGET, [method(Place(), "mine")], output=tmp_path)
    with pytest.raises(OutputError, match=r"holds results of 'layer_average 0.5 / mine' with another definition"):
        tp.tune(model, samples, BUDGET, [method(Place(keep="matter"), "mine")], output=tmp_path)


@pytest.mark.parametrize("content", [None, "garbage", "{}", "[1]"])
def test_rows_of_an_unknown_definition_are_refused(tmp_path: Path, content: str | None) -> None:
    model, samples = planted(4)
    tp.tune(model, samples, BUDGET, [method(Place(keep="matter"), "mine")], output=tmp_path)
    (tmp_path / "candidates.json").unlink()
    if content is not None:
        (tmp_path / "candidates.json").write_text(content)
    for _ in range(2):  # the refusal itself writes no definition
        with pytest.raises(OutputError, match=r"and its candidates\.json does not say what that is"):
            tp.tune(model, samples, BUDGET, [method(Place(), "mine")], output=tmp_path)


def test_a_file_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    """Its lines look like those that a kill cut."""
    theirs = '{"question": "what?"}\n'
    (tmp_path / "samples.jsonl").write_text(theirs)
    model, samples = planted(4)
    with pytest.raises(OutputError, match=r"samples\.jsonl is not of a tune"):
        tp.tune(model, samples, BUDGET, ["fastv"], output=tmp_path)
    assert (tmp_path / "samples.jsonl").read_text() == theirs


def test_a_damaged_tune_is_refused(tmp_path: Path) -> None:
    model, samples = planted(4)
    tp.tune(model, samples, BUDGET, ["random"], output=tmp_path)
    (tmp_path / "tune.json").write_text("[]")
    with pytest.raises(OutputError, match="not those of a tune"):
        tp.tune(model, samples, BUDGET, ["random"], output=tmp_path)


@pytest.mark.parametrize(
    ("candidates", "error", "words"),
    [
        (["fastw"], UnknownNameError, "unknown method 'fastw'; did you mean 'fastv'"),
        ([], ConfigError, "there are no candidates; name some"),
        ([3], ConfigError, "a candidate is int; give names of methods"),
        ("fastv", ConfigError, "the candidates are str; give a list of names"),
        (method(Place(), "a"), ConfigError, "the candidates are Method; give a list of names"),
        (3, ConfigError, "the candidates are int; give a list of names"),
        ([method(Place(), "random: layer 1", layer=1)], ConfigError, "not random is called 'random: layer 1'; give it"),
        ([fastv()], ConfigError, "a candidate has no label"),
        ([method(Place(), "a"), method(Place(), "a")], ConfigError, "two candidates are called 'a'"),
    ],
)
def test_wrong_candidates(candidates: Any, error: type[Exception], words: str) -> None:
    model, samples = planted(4)
    with pytest.raises(error, match=words):
        tp.tune(model, samples, BUDGET, candidates)


def test_what_cannot_run_is_listed_with_its_reason() -> None:
    model, samples = planted(4)
    result = tp.tune(model, samples, BUDGET, ["fastv", method(Place(), "far", layer=9), "oracle"])
    assert "layer 9" in result.refused["far"]
    assert any(name.startswith("oracle") for name in result.refused)
    assert "cannot run: far: " in str(result)


def test_no_candidate_can_run() -> None:
    model, samples = planted(4)
    with pytest.raises(ConfigError, match=r"no candidate can run.*layer average of 0\.48 tokens cannot be met"):
        tp.tune(model, samples, {"name": "layer_average", "ratio": 0.03}, ["fastv"])


def test_a_budget_above_the_tokens() -> None:
    model, samples = planted(4)
    with pytest.raises(BudgetError, match="'layer_average 17' asks for more than the 16 visual tokens of a sample"):
        tp.tune(model, samples, {"name": "layer_average", "tokens": 17}, ["fastv"])


@pytest.mark.parametrize("budget", [{"name": "keep_ratio", "ratio": 0.5}, {"name": "drop_all"}])
def test_budgets_of_unequal_cost_are_refused(budget: dict[str, Any]) -> None:
    model, samples = planted(4)
    with pytest.raises(ConfigError, match="would not cost the same; use layer_average"):
        tp.tune(model, samples, budget, ["fastv"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"objective": "accuracy"}, "tune: objective: Input should be 'root_divergence'"),
        ({"error": 0.0}, "tune: error: Input should be greater than 0"),
        ({"first": 1}, "tune: first: "),
        ({"tokens": 0}, "tune: tokens: "),
        ({"budget": "half"}, "tune: budget: unknown budget 'half'"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], words: str) -> None:
    model, samples = planted(4)
    with pytest.raises(ConfigError, match=words):
        tp.tune(model, samples, **{"budget": BUDGET, "candidates": ["fastv"], **arguments})


def test_progress_never_goes_back_and_ends_with_the_tune(tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    budgets = [BUDGET, {"name": "layer_average", "tokens": 6}]
    run_tune(config(str(tmp_path), budget=None, budgets=budgets, first=16), lambda *step: seen.append(step))
    shares = [done / total for _, done, total in seen]
    assert shares == sorted(shares)
    assert shares[-1] == 1
    assert seen[0][0].startswith("layer_average 0.5: ")


def test_samples_that_tell_nothing() -> None:
    model, samples = planted(4)
    with pytest.raises(ConfigError, match="calibration is an empty list"):
        tp.tune(model, [], BUDGET)
    one = {name: value[:1] for name, value in samples[0].items()}
    with pytest.raises(ConfigError, match="1 sample says nothing about others; give at least 2"):
        tp.tune(model, [one], BUDGET)
    with pytest.raises(UnsupportedFeatureError, match="2 of 4 samples have no visual tokens"):
        tp.tune(model, [samples[0], {"input_ids": torch.full((2, 5), 7)}], BUDGET)


def test_pictures_of_several_sizes() -> None:
    """No candidate runs on the small ones only to be refused at the first large one."""
    case = CASES["qwen2_vl"]
    model: Any = case.build()
    small = case.batch(model, 2, "none").inputs
    token = model.config.image_token_id
    ids = small["input_ids"][:1]
    row = ids[0]
    end = int((row == token).nonzero().max()) + 1
    wide = torch.cat([ids[:, :end], ids[:, row == token], ids[:, end:]], 1)  # a picture of twice as many tokens
    grid = small["image_grid_thw"][:1] * torch.tensor([1, 2, 1])
    large = {
        "input_ids": wide,
        "attention_mask": torch.ones_like(wide),
        "mm_token_type_ids": (wide == token).int(),
        "image_grid_thw": grid,
        "pixel_values": torch.randn(int(grid.prod()), small["pixel_values"].shape[1]),
    }
    result = tp.tune(model, [small, large], {"name": "layer_average", "tokens": 12}, ["fastv"], first=2)
    assert not result.refused
    assert result.best.seen == 3
    assert "fastv: layer 1" in {row.name for row in result.ranked}  # before layer 2 the large one leaves no room


def test_a_model_in_use_is_refused() -> None:
    model = CASE.build()
    samples = [CASE.batch(model, 2, "none").inputs] * 2
    with tp.apply(model, fastv()), pytest.raises(BusyModelError):
        tp.tune(model, samples, BUDGET, ["fastv"])


class Unreadable(ToyTask):
    """Every picture is missing."""

    def calibration(self, count: int) -> list[Any]:
        return []

    def samples(self) -> Any:
        class Broken(list[Any]):
            def __getitem__(self, index: Any) -> Any:
                raise SampleError("picture 1.png is missing")

        return Broken([0] * 4)


def test_all_samples_are_unreadable(tmp_path: Path) -> None:
    with pytest.raises(
        SampleError, match=r"none of the task's samples can be used; the first: picture 1\.png is missing"
    ):
        run_tune(config(str(tmp_path / "out"), task=Unreadable()))
    assert not (tmp_path / "out").exists()


class Picky(ToyModel):
    """Refuses one question."""

    def load(self) -> Any:
        loaded = super().load()
        encoder = loaded.encoder

        def encode(samples: Any) -> Any:
            if any(len(sample.question) == 3 for sample in samples):
                raise ValueError("three letters")
            return encoder(samples)

        loaded.encoder = encode
        return loaded


def test_samples_that_cannot_be_encoded_are_left_out(tmp_path: Path) -> None:
    result = run_tune(config(str(tmp_path / "a"), model=Picky(), methods=["fastv"]))
    assert result.skipped
    assert all("three letters" in why for why in result.skipped.values())
    assert result.rankings[0].samples == 16 - len(result.skipped)
    assert "Samples that could not be used" in (tmp_path / "a" / "report.md").read_text()
    with pytest.raises(SampleError, match="three letters"):
        run_tune(config(str(tmp_path / "b"), model=Picky(), methods=["fastv"], strict=True))


def test_labels_need_answers(tmp_path: Path) -> None:
    class Free(ToyTask):
        @property
        def label_free(self) -> bool:
            return True

    with pytest.raises(ConfigError, match="labels: the task has no answers"):
        run_tune(config(str(tmp_path), task=Free(), labels=True))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"budget": {"name": "keep_ratio", "ratio": 0.5}}, "budget: candidates with the budget keep_ratio would not"),
        ({"budget": None}, "give exactly one of 'budget' and 'budgets'"),
        ({"budgets": [BUDGET]}, "give exactly one of 'budget' and 'budgets'"),
        ({"budget": None, "budgets": [BUDGET, BUDGET]}, "the budget 'layer_average 0.5' stands twice"),
        ({"samples": 1}, "samples: Input should be greater than or equal to 2"),
        ({"methods": ["fastw"]}, r"methods\[0\]: unknown method 'fastw'; did you mean 'fastv'"),
        ({"methods": []}, "methods: "),
        ({"methods": [{"pruner": "topk"}]}, "methods"),
        (
            {"objective": "accuracy"},
            "objective: Input should be 'root_divergence', 'agreement', 'divergence' or 'distance'",
        ),
        ({"output": " "}, "output: name a folder"),
        ({"budget": {"name": "prefill_time", "ratio": 1.5}}, "budget.ratio: Input should be less than 1"),
    ],
)
def test_wrong_settings_are_one_line(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        config(**{"folder": "out", **changes})
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("toy_installed")
def test_a_config_reads_back() -> None:
    for budget in (BUDGET, {"name": "prefill_time", "ratio": 0.5}):
        made = config("out", budget=budget, methods=["fastv", {"name": "random", "label": "chance"}])
        assert tp.TuneConfig.from_dict(yaml.safe_load(made.to_yaml())) == made
