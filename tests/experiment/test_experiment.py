"""Experiments: what is written, what survives a kill, what is refused before anything runs."""

from __future__ import annotations

import json
import random
import time
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.support.processes import started
from tests.support.toy import ToyModel, ToyTask, completed, config, run_slowly
from tokenprune.engine.trials.features import SharedFeatures
from tokenprune.errors import BudgetError, ConfigError, LayerError, OutputError, PluginError, UnsupportedModelError
from tokenprune.experiment import ExperimentConfig, cost, markdown, run_experiment, summarise, write_report
from tokenprune.experiment.answers import Answers
from tokenprune.experiment.asking import Asking
from tokenprune.experiment.result import ExperimentResult
from tokenprune.experiment.results import Results
from tokenprune.models.base import LoadedModel
from tokenprune.selectors.vtw import Vtw
from tokenprune.stats.clustered import difference

SERIES = 1 + 2 * (1 + 2 + 1)  # unpruned; two budgets x (norm, random twice, oracle)


def lines(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]


def canonical(folder: Path) -> list[str]:
    return sorted(json.dumps(row, sort_keys=True) for row in lines(folder))


def test_one_line_per_method_budget_and_sample(tmp_path: Path) -> None:
    run_experiment(config(str(tmp_path)))
    rows = lines(tmp_path)
    assert len(rows) == SERIES * 24
    assert len({(row["series"], row["sample"]) for row in rows}) == len(rows)
    for row in rows:
        expected = {"unpruned": 16, "keep_ratio 0.5": 8, "keep_count 2": 2}[str(row["budget"] or "unpruned")]
        assert row["visual_after"] == expected
        assert row["visual_before"] == 16
        # the toy has 4 layers and every method prunes before layer 2
        assert row["layer_average"] == (2 * 16 + 2 * expected) / 4
        assert (row["flops"] == row["flops_unpruned"]) == (expected == 16)
        assert row["kv_bytes"] <= row["kv_bytes_unpruned"]  # type: ignore[operator]
    assert {"config.yaml", "environment.json", "choices.json", "samples.jsonl"} <= {p.name for p in tmp_path.iterdir()}
    assert not (tmp_path / ".owner").exists()


def test_a_component_that_is_not_registered_is_named_by_where_it_is(tmp_path: Path) -> None:
    assert "tests.support.toy:ToyModel" in config(str(tmp_path)).to_yaml()


@pytest.mark.usefixtures("toy_installed")
def test_the_resolved_config_reads_back(tmp_path: Path) -> None:
    plain = {
        "model": "toy",
        "task": "toy",
        "methods": ["fastv"],
        "budgets": [{"name": "keep_ratio", "ratio": 0.5}],
    }
    first = ExperimentConfig.from_dict(plain | {"output": "x"})
    (tmp_path / "c.yaml").write_text(first.to_yaml())
    assert ExperimentConfig.from_yaml(tmp_path / "c.yaml") == first


@pytest.mark.slow
def test_a_second_run_only_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    completed(tmp_path)
    before = (tmp_path / "samples.jsonl").read_bytes()

    def fail(self: ToyModel) -> None:
        raise AssertionError("the model was loaded again")

    monkeypatch.setattr(ToyModel, "load", fail)
    result = run_experiment(config(str(tmp_path)))
    assert (tmp_path / "samples.jsonl").read_bytes() == before
    assert len(result.rows) == SERIES * 24


@pytest.mark.slow
def test_killed_at_any_moment_it_goes_on(tmp_path: Path) -> None:
    """SIGKILL at random moments, again and again: the same lines as a run in one go, nothing twice."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    completed(whole)
    rng = random.Random(0)
    for _ in range(5):  # up to 7 of the 45 batches each time
        with started(run_slowly, killed) as job:
            for _ in range(rng.randint(1, 6)):
                job.step()
            time.sleep(rng.random() * 0.05)
        done = lines_or_torn(killed)
        assert 0 < done < SERIES * 24
    # as if the last write had been cut in the middle
    with (killed / "samples.jsonl").open("a") as file:
        file.write('{"series": "unpruned", "sample": "s2')
    run_slowly(killed, lambda *step: None)
    assert canonical(killed) == canonical(whole)


def lines_or_torn(folder: Path) -> int:
    return len((folder / "samples.jsonl").read_text().splitlines())


@pytest.mark.slow
def test_an_unfinished_batch_is_done_again(tmp_path: Path) -> None:
    completed(tmp_path)
    whole = canonical(tmp_path)
    kept = (tmp_path / "samples.jsonl").read_text().splitlines()
    (tmp_path / "samples.jsonl").write_text("\n".join(kept[:33]) + "\n")  # the seventh batch has three of five lines
    run_experiment(config(str(tmp_path)))
    assert canonical(tmp_path) == whole


def test_another_config_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    completed(tmp_path)
    with pytest.raises(OutputError, match=r"holds results with other settings \(max_new_tokens: 2 there, 3 now\)"):
        run_experiment(config(str(tmp_path), max_new_tokens=3))


def test_how_to_install_a_plugin_is_no_part_of_the_results(tmp_path: Path) -> None:
    completed(tmp_path)
    before = (tmp_path / "samples.jsonl").read_bytes()
    run_experiment(config(str(tmp_path), requires={"tokenprune-mllm": "pip install tokenprune-mllm"}))
    assert (tmp_path / "samples.jsonl").read_bytes() == before


def test_a_selector_that_searches_gets_the_calibration_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """VTW tries layer after layer on training pictures: when layers are chosen, and not for every batch."""
    searched: list[object] = []
    select = Vtw.select
    monkeypatch.setattr(Vtw, "select", lambda self, profile: (searched.append(profile), select(self, profile))[1])
    vtw = {"name": "vtw", "layers": {"name": "vtw", "start": 1, "threshold": 1e9}}
    result = run_experiment(
        config(str(tmp_path), methods=[vtw], budgets=[{"name": "drop_all"}], oracle=False, calibration=3)
    )
    choice = result.choices["vtw / drop_all"]
    assert choice["layers"] == [1]
    assert "changes the next token by" in choice["reason"]
    assert len(searched) == 1
    assert {row["visual_after"] for row in result.rows if row["method"] == "vtw"} == {0}


def test_methods_and_budgets_can_be_added_and_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is there is kept, only what is new runs, and what was taken out is in no table."""
    few = {"methods": ["norm-hidden-large"], "budgets": [{"name": "keep_count", "tokens": 2}]}
    run_experiment(config(str(tmp_path), **few))
    before = lines(tmp_path)
    ran: list[str] = []
    answer = Asking.answer
    monkeypatch.setattr(
        Asking, "answer", lambda self, item, *rest: (ran.append(item.key), answer(self, item, *rest))[1]
    )
    more = {"methods": ["norm-hidden-large", "norm-hidden-small"], "budgets": [{"name": "keep_count", "tokens": 2}]}
    assert len(run_experiment(config(str(tmp_path), **more)).rows) == 4 * 24
    assert set(ran) == {"norm-hidden-small / keep_count 2"}
    assert lines(tmp_path)[: len(before)] == before
    ran.clear()
    assert {row["series"] for row in run_experiment(config(str(tmp_path), **few)).rows} == {
        "unpruned",
        "norm-hidden-large / keep_count 2",
        "oracle / keep_count 2",
    }
    assert not ran


def test_one_name_for_two_definitions_is_refused(tmp_path: Path) -> None:
    run_experiment(config(str(tmp_path), methods=[{"name": "random", "label": "mine"}]))
    before = (tmp_path / "samples.jsonl").read_bytes()
    with pytest.raises(OutputError, match=r"holds results of 'mine / .* with another definition"):
        run_experiment(config(str(tmp_path), methods=[{"name": "norm-hidden-small", "label": "mine"}]))
    assert (tmp_path / "samples.jsonl").read_bytes() == before


@pytest.mark.slow
def test_two_processes_cannot_share_a_folder(tmp_path: Path) -> None:
    with started(run_slowly, tmp_path) as job:
        job.step()
        with pytest.raises(OutputError, match=f"being written by process {job.process.pid}"):
            run_experiment(config(str(tmp_path), delay=0.05))
    with Results(tmp_path).locked():  # the lock of a dead process does not count
        pass


def test_a_file_in_the_way_of_the_folder_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        run_experiment(config(str(tmp_path / "file" / "results")))


def test_impossible_budgets_and_layers_stop_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(BudgetError, match="more than the 16 visual tokens"):
        run_experiment(config(str(tmp_path / "a"), budgets=[{"name": "keep_count", "tokens": 17}]))
    with pytest.raises(BudgetError, match="cannot be met"):
        run_experiment(config(str(tmp_path / "b"), budgets=[{"name": "layer_average", "tokens": 4}]))
    late = {"name": "random", "layers": {"name": "fixed", "layers": [4]}}
    with pytest.raises(LayerError, match="layer 4 is out of range"):
        run_experiment(config(str(tmp_path / "c"), methods=[late]))
    assert not list(tmp_path.glob("*/samples.jsonl"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": ["entropyprun"]}, r"methods\[0\]: unknown method 'entropyprun'; did you mean 'entropyprune'"),
        ({"methods": ["fastv", "fastv"]}, "fastv appear twice"),
        ({"methods": [{"pruner": {"name": "topk", "scorer": "random"}}]}, "needs a name, or layers, pruner and label"),
        ({"budgets": [{"name": "keep_ratio", "ratio": 0}]}, r"budgets\[0\].ratio: .*greater than 0, got 0"),
        (
            {"budgets": [{"name": "keep_ration", "ratio": 0.5}]},
            r"budgets\[0\]: unknown budget 'keep_ration'; did you mean",
        ),
        ({"colour": "red"}, "colour: unknown key"),
        ({"batch_size": 0}, "batch_size: .*greater than or equal to 1, got 0"),
    ],
)
def test_wrong_configs_name_the_path(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(str(tmp_path), **changes)


def test_seeds_for_a_method_without_any_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="uses no random numbers"):
        list(config(str(tmp_path), methods=[{"name": "norm-hidden-large", "seeds": [0, 1]}]).series())


@pytest.mark.slow
def test_a_family_without_a_closed_form_leaves_its_columns_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(*_: object) -> None:
        raise UnsupportedModelError("FLOPs of 'toy' are unknown")

    monkeypatch.setattr(cost, "shapes_of", unknown)
    table = markdown(run_experiment(config(str(tmp_path))))
    assert "| unknown | unknown |" in table
    assert "nan" not in table


def test_a_budget_that_drops_nothing_is_said(tmp_path: Path) -> None:
    """The toy's pictures have 16 tokens each; a row that looks pruned must not be one that is not."""
    result = run_experiment(config(str(tmp_path), budgets=[{"name": "keep_count", "tokens": 16}]))
    assert "`norm-hidden-large` with `keep_count 16` dropped nothing of 24 of 24 samples" in markdown(result)
    assert "`random` with `keep_count 16` dropped nothing of 48 of 48 samples" in markdown(result)
    assert "dropped nothing" not in markdown(completed(tmp_path / "other"))


@pytest.mark.slow
def test_seeds_give_different_choices(tmp_path: Path) -> None:
    rows = completed(tmp_path).rows
    said = {seed: [r["prediction"] for r in rows if r["method"] == "random" and r["seed"] == seed] for seed in (0, 1)}
    assert said[0] != said[1]


@pytest.mark.slow
def test_random_does_not_depend_on_the_batch_size(tmp_path: Path) -> None:
    first = {(r["series"], r["sample"]): r["prediction"] for r in completed(tmp_path / "a").rows}
    second = run_experiment(config(str(tmp_path / "b"), batch_size=24)).rows
    same = [first[r["series"], r["sample"]] == r["prediction"] for r in second]
    assert sum(same) >= 0.97 * len(same)  # other padding, other rounding: a tie may fall the other way


@pytest.mark.slow
def test_timing_is_paired_and_written(tmp_path: Path) -> None:
    result = run_experiment(config(str(tmp_path), timing=2))
    assert len(result.timing) == SERIES - 1
    assert all(len(ratios) == 2 and min(ratios) > 0 for ratios in result.timing.values())
    assert json.loads((tmp_path / "timing.json").read_text()) == result.timing
    assert "MiB | 1 |" in markdown(result)
    assert "prefill time" not in markdown(completed(tmp_path / "untimed"))  # nothing was timed


def test_layers_that_were_fixed_are_listed_one_by_one(tmp_path: Path) -> None:
    """Two methods with one reason and different layers are two lines."""
    other = {"name": "norm-hidden-large", "label": "early", "layers": {"name": "fixed", "layers": [1]}}
    result = run_experiment(config(str(tmp_path), methods=["norm-hidden-large", other], oracle=False))
    text = markdown(result)
    assert "| norm-hidden-large | 2 | fixed by the config |\n" in text
    assert "| early | 1 | fixed by the config |\n" in text


def test_the_report_says_what_the_lines_say(tmp_path: Path) -> None:
    result = completed(tmp_path)
    table = {(line.method, line.budget): line for line in summarise(result)}
    rows = lines(tmp_path)
    for (method, budget), line in table.items():
        mine = [row for row in rows if row["method"] == method and (row["budget"] or "") == budget]
        assert line.accuracy.mean == pytest.approx(sum(float(row["score"]) for row in mine) / len(mine))
        assert line.seeds == (2 if method == "random" else 1)
    whole = table["unpruned", ""].accuracy.mean
    assert table["oracle", "keep_count 2"].kept == pytest.approx(table["oracle", "keep_count 2"].accuracy.mean / whole)
    text = markdown(result)
    assert "24 questions are too few to say whether this model can tell methods apart" in text
    assert "Noticed on these: unpruned accuracy" in text
    assert "| norm-hidden-large, random, oracle | 2 | fixed by the config |" in text
    names = {path.name for path in write_report(result)}
    assert {"report.md", "summary.json", "report.html", "accuracy.png", "accuracy.svg", "accuracy.pdf"} == names
    assert (tmp_path / "accuracy.png").stat().st_size > 10_000


def made_up(right: dict[tuple[str, str], list[float]], average: dict[str, float]) -> ExperimentResult:
    """Results of questions on a picture each; a method's share of right answers may be 0, 1/2 (two seeds) or 1."""
    rows = []
    for (method, budget), shares in right.items():
        for sample, share in enumerate(shares):
            for seed in (0, 1):
                rows.append(
                    {
                        "series": f"{method} {budget} {seed}",
                        "method": method,
                        "budget": budget or None,
                        "seed": seed,
                        "sample": str(sample),
                        "position": sample,
                        "prediction": "yes",
                        "group": str(sample),
                        "type": "any",
                        "answer": "yes",
                        "score": float(share > seed / 2),
                        "visual_before": 16,
                        "visual_after": {"": 16, "half": 8, "few": 2}[budget],
                        "layer_average": average[method],
                        "flops": 1.0,
                        "flops_unpruned": 2.0,
                        "kv_bytes": 1,
                        "kv_bytes_unpruned": 1,
                    }
                )
    return ExperimentResult("nowhere", Answers.read(rows))


def test_every_method_is_compared_with_the_random_choice_of_its_cost() -> None:
    right = {
        ("unpruned", ""): [1.0, 1.0, 1.0, 1.0],
        ("random", "half"): [1.0, 0.5, 0.0, 0.5],
        ("random-early", "half"): [0.0, 0.0, 0.0, 0.5],
        ("good", "half"): [1.0, 1.0, 1.0, 1.0],
        ("early", "half"): [0.0, 0.0, 0.0, 0.0],
        ("bad", "half"): [0.5, 0.0, 0.0, 0.0],
        ("random", "few"): [1.0, 1.0, 1.0, 1.0],
        ("bad", "few"): [0.0, 0.0, 0.5, 0.0],
    }
    average = {"unpruned": 16, "random": 9, "random-early": 5, "good": 12, "early": 4.9, "bad": 8.7}
    text = markdown(made_up(right, average))
    table = text[text.index("Gains over random:") :].splitlines()[2:7]

    def gap(mine: list[float], other: list[float]) -> str:
        gain = difference([a - b for a, b in zip(mine, other, strict=True)])
        return f"**{gain.written(signed=True)}**" if gain.high < 0 else gain.written(signed=True)

    bad = [gap(right["bad", budget], right["random", budget]) for budget in ("half", "few")]
    assert bad[0] == "-38 [-63, +13]"  # three of four questions prove nothing
    assert bad[1].startswith("**-88")
    assert table == [
        "| method | half | few | compared with |",
        "|---|---:|---:|---|",
        f"| bad | {bad[0]} | {bad[1]} | random |",
        f"| early | {gap(right['early', 'half'], right['random-early', 'half'])} |  | random-early |",
        f"| good | {gap(right['good', 'half'], right['random', 'half'])} († 12 : 9) |  | random |",
    ]
    assert "† Not the same cost" in text
    assert "Points above random" not in markdown(
        made_up({key: value for key, value in right.items() if "random" not in key[0]}, average)
    )


def test_the_table_goes_budget_by_budget_the_best_on_top() -> None:
    right = {
        ("good", "few"): [1.0, 0.0],
        ("bad", "half"): [0.5, 0.0],
        ("unpruned", ""): [0.0, 0.0],
        ("good", "half"): [0.5, 0.5],
        ("bad", "few"): [1.0, 0.5],
    }
    lines = summarise(made_up(right, {"good": 3, "bad": 9, "unpruned": 16}))
    assert [(line.method, line.budget) for line in lines] == [
        ("unpruned", ""),
        ("good", "half"),
        ("bad", "half"),
        ("bad", "few"),
        ("good", "few"),
    ]


def test_the_oracle_keeps_the_foreground(tmp_path: Path) -> None:
    """The toy's foreground is the upper left: the two tokens kept at the smallest budget must be in it."""
    from tests.support.toy import ToyTask
    from tokenprune.tasks.base import foreground_tokens

    shares = foreground_tokens(ToyTask().samples()[0], 4, 4)
    assert shares.reshape(4, 4).tolist() == [[1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]


@pytest.mark.slow
def test_the_tower_runs_once_per_batch_for_all_that_do_not_read_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shared features change no answer, and what reads the tower's attention still sees its tower run."""
    runs: list[int] = []
    load = ToyModel.load

    def counted(self: ToyModel) -> LoadedModel:
        loaded = load(self)
        loaded.model.base_model.vision_tower.register_forward_pre_hook(lambda *_: runs.append(1))
        return loaded

    monkeypatch.setattr(ToyModel, "load", counted)
    methods = ["norm-hidden-large", {"name": "random", "seeds": [0, 1]}, "vision-attention"]
    run_experiment(config(str(tmp_path / "shared"), methods=methods, examples=0))
    # the first sample is looked for, all are tried out on it, then come five batches: once for all, and once for each
    # budget of vision-attention
    assert len(runs) == 1 + (1 + 5) * (1 + 2)
    runs.clear()
    monkeypatch.setattr(SharedFeatures, "enabled", lambda self: nullcontext())
    run_experiment(config(str(tmp_path / "alone"), methods=methods, examples=0))
    assert len(runs) == 1 + (1 + 5) * (1 + 2 * (1 + 2 + 1 + 1))
    assert lines(tmp_path / "shared") == lines(tmp_path / "alone")


def test_features_of_other_pixels_are_computed() -> None:
    class Model(nn.Module):
        calls = 0

        def get_image_features(self, pixel_values: Tensor, scale: float = 1.0) -> Tensor:
            self.calls += 1
            return scale * pixel_values

    model = Model()
    shared = SharedFeatures(model)
    pixels = torch.arange(4.0)
    with shared.enabled():
        assert model.get_image_features(pixels.clone()).equal(pixels)
        assert model.get_image_features(pixel_values=pixels.clone()).equal(pixels)
        assert model.calls == 1
        assert model.get_image_features(pixel_values=pixels, scale=2.0).equal(2 * pixels)
        assert model.get_image_features(pixel_values=pixels + 1, scale=2.0).equal(2 * pixels + 2)
        assert model.calls == 3
    assert "get_image_features" not in vars(model)
    theirs = model.get_image_features
    model.__dict__["get_image_features"] = theirs
    with shared.enabled():
        assert model.__dict__["get_image_features"] is not theirs
    assert model.__dict__["get_image_features"] is theirs  # what somebody else has put there stays


@pytest.mark.parametrize("score", [float("nan"), 100.0, -1.0])
def test_a_score_that_is_no_share_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, score: float) -> None:
    """Tables would show it as a percentage, a hundred times too large."""
    monkeypatch.setattr(ToyTask, "score", lambda self, sample, text: score)
    with pytest.raises(PluginError, match=rf"the task ToyTask scores the answer 'w.*' of sample 's0' with {score:g}"):
        run_experiment(config(str(tmp_path)))
