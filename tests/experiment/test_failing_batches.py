"""Batches that fail: their samples are asked one by one, what fails alone is left out, and hours are never lost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.failing import Failing
from tests.support.toy import ToyModel, ToyTask, config
from tokenprune.errors import ForwardError, SampleError, TokenPruneWarning
from tokenprune.experiment import ExperimentResult, markdown, run_experiment
from tokenprune.experiment.dry_run import plan_experiment
from tokenprune.experiment.part import Part
from tokenprune.experiment.results import Results

FEW: dict[str, Any] = {
    "methods": ["norm-hidden-large"],
    "oracle": False,
    "budgets": [{"name": "keep_count", "tokens": 2}],
}
ONE_BY_ONE = pytest.warns(
    TokenPruneWarning, match="the samples of this batch, and of others that fail, are answered one"
)


def run(folder: Path, part: Part | None = None, **changes: Any) -> ExperimentResult:
    return run_experiment(config(str(folder), **{**FEW, **changes}), part=part)


def said(result: ExperimentResult) -> dict[tuple[str, int], str]:
    return {(row["series"], row["position"]): row["prediction"] for row in result.rows}


@pytest.fixture
def alone(tmp_path: Path) -> dict[tuple[str, int], str]:
    """The answers of the toy with a batch for every sample."""
    return said(run(tmp_path / "alone", batch_size=1))


@pytest.mark.slow
@pytest.mark.parametrize("why", [{"most": 1}, {"most": 1, "memory": True}, {"apart": True}], ids=str)
def test_a_batch_that_fails_is_answered_sample_by_sample(
    tmp_path: Path, alone: dict[tuple[str, int], str], why: dict[str, Any]
) -> None:
    """Shapes, memory, or samples that cannot be encoded together: nothing is left out."""
    if "most" in why:
        with ONE_BY_ONE:
            result = run(tmp_path / "out", model=Failing(**why))
    else:
        result = run(tmp_path / "out", model=Failing(**why))
    assert not result.skipped
    assert said(result) == alone
    assert [row["position"] for row in result.rows][:10] == [*range(5), *range(5)]  # batch by batch, as ever


@pytest.mark.slow
def test_only_a_method_may_fail_on_batches(tmp_path: Path) -> None:
    with ONE_BY_ONE:
        result = run(tmp_path, model=Failing(most=1, pruned=True))
    assert not result.skipped
    assert len(result.rows) == 48


def test_a_sample_that_fails_alone_is_left_out(tmp_path: Path) -> None:
    """The rows of the others are those of a batch that never had it."""
    with ONE_BY_ONE:
        result = run(tmp_path / "out", model=Failing(letter="f"))
    assert sorted(result.skipped) == [4, 9, 14, 19]  # every fifth question has six letters
    assert (
        "the unpruned model on sample 's4': RuntimeError: shapes differ (support/failing.py, line" in result.skipped[4]
    )
    assert {row["position"] for row in result.rows} == set(range(24)) - set(result.skipped)
    assert "4 samples could not be used" in markdown(result)
    before = (tmp_path / "out" / "samples.jsonl").read_bytes()
    assert run(tmp_path / "out", model=Failing(letter="f")).skipped == result.skipped
    assert (tmp_path / "out" / "samples.jsonl").read_bytes() == before


@pytest.mark.slow
def test_a_sample_on_which_a_method_fails_is_left_out_of_all_series(tmp_path: Path) -> None:
    task = OneOf()
    with ONE_BY_ONE:
        result = run(tmp_path, model=Failing(letter="z", pruned=True), task=task)
    assert list(result.skipped) == [7]
    assert result.skipped[7].startswith("method 'norm-hidden-large' with budget 'keep_count 2' on sample 's7': Runtime")
    assert {len(answers) for answers in result.answers.series.values()} == {23}
    assert {row["position"] for row in result.rows if row["method"] != "unpruned"} == set(range(24)) - {7}
    (row,) = Results(tmp_path).skipped_rows()
    assert row["series"] == "norm-hidden-large / keep_count 2"


class OneOf(ToyTask):
    """The toy task with a z in the question of sample 7."""

    def samples(self) -> Any:
        made = list(super().samples())
        object.__setattr__(made[7], "question", "az")
        return made


@pytest.mark.slow
def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    """Stopped behind the unpruned answers of the batch that holds the sample."""
    model, task = Failing(letter="z", pruned=True), OneOf()
    with ONE_BY_ONE:
        run(tmp_path / "whole", model=model, task=task)

    def stop(name: str, done: int, total: int) -> None:
        if done == 3:  # of two series; the second batch has begun
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_experiment(config(str(tmp_path / "out"), **{**FEW, "model": model, "task": task}), stop)
    with ONE_BY_ONE:
        run(tmp_path / "out", model=model, task=task)
    assert (tmp_path / "out" / "samples.jsonl").read_bytes() == (tmp_path / "whole" / "samples.jsonl").read_bytes()


@pytest.mark.slow
def test_strict_makes_it_an_error(tmp_path: Path) -> None:
    with ONE_BY_ONE, pytest.raises(SampleError, match="the unpruned model on sample 's4': RuntimeError: shapes differ"):
        run(tmp_path, model=Failing(letter="f"), strict=True)
    with ONE_BY_ONE:
        assert not run(tmp_path / "apart", model=Failing(most=1), strict=True).skipped  # no sample is at fault


def test_a_model_that_fails_on_all_samples_stops_before_the_first_answer(tmp_path: Path) -> None:
    Failing.sizes.clear()
    with pytest.raises(ForwardError, match="the unpruned model: RuntimeError: shapes differ"):
        run(tmp_path / "out", model=Failing(letter="a"))
    assert len(Failing.sizes) == 8
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_samples_that_fail_in_a_row_stop_the_run_and_are_asked_again(tmp_path: Path) -> None:
    class Later(ToyTask):
        def samples(self) -> Any:
            made = list(super().samples())
            for sample in made[6:]:
                object.__setattr__(sample, "question", "az")
            return made

    with ONE_BY_ONE, pytest.raises(ForwardError, match=r"shapes differ .*; 10 samples in a row fail, so it is not the"):
        run(tmp_path, model=Failing(letter="z"), task=Later())
    assert list(Results(tmp_path).skipped_samples()) == [6, 7, 8, 9]  # beside one that was answered
    assert {row["position"] for row in Results(tmp_path).rows()} == set(range(6))


@pytest.mark.slow
def test_another_batch_size_goes_on(tmp_path: Path) -> None:
    """The remedy of an older version: what was answered counts."""

    def stop(name: str, done: int, total: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_experiment(config(str(tmp_path), **FEW), stop)
    kept = {(row["series"], row["position"]) for row in Results(tmp_path).rows()}
    assert len(kept) == 25
    ran: list[str] = []
    with pytest.warns(
        TokenPruneWarning, match=r"has answers with batch_size 5 and goes on with 1: .* may differ by rounding"
    ):
        result = run_experiment(
            config(str(tmp_path), **{**FEW, "batch_size": 1}), lambda name, done, total: ran.append(name)
        )
    assert len(ran) == 48 - 25
    assert len(result.rows) == 48
    assert len({(row["series"], row["position"]) for row in result.rows}) == 48
    assert "batches of 5 and 1" in markdown(result)


@pytest.mark.slow
def test_a_dry_run_of_batches_that_fail(tmp_path: Path) -> None:
    with ONE_BY_ONE:
        plan = plan_experiment(config(str(tmp_path / "out"), **FEW, model=Failing(most=1)))
    assert plan.batch_size == 5
    assert plan.seconds > 0
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_times_are_measured_where_a_batch_fails(tmp_path: Path) -> None:
    with ONE_BY_ONE:
        result = run(tmp_path, model=Failing(most=1), timing=1)
    assert len(result.timing) == 1


@pytest.mark.slow
def test_rows_do_not_depend_on_how_a_healthy_model_is_asked(tmp_path: Path) -> None:
    assert run(tmp_path / "a").rows == run(tmp_path / "b", model=ToyModel()).rows
