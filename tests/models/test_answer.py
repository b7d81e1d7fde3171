"""Answers are equal wherever they are made, and none is made of logits that are no numbers."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.support.broken import break_prompts, letter, toy
from tests.support.toy import ToyModel, ToyTask, config
from tokenprune.cli.looking import answer_text
from tokenprune.errors import PluginError, UnsupportedFeatureError
from tokenprune.experiment.answering import Answering, BatchInWork
from tokenprune.experiment.batches import Batches
from tokenprune.models.answer import generate
from tokenprune.models.base import LoadedModel
from tokenprune.ops.finite import is_distribution
from tokenprune.tasks.base import Sample, checked_score, sample_seed
from tokenprune.tuning import TuneConfig
from tokenprune.tuning.measuring import _answer as tune_answer
from tokenprune.tuning.samples import read_samples

DRAWN: dict[str, Any] = {"do_sample": True, "temperature": 3.0, "top_k": 0}
SAMPLES = [ToyTask().samples()[number] for number in (0, 3, 6, 9, 12)]


def answers(loaded: LoadedModel, samples: list[Sample], length: int = 6) -> dict[str, list[int]]:
    found = generate(loaded, samples, loaded.encode(samples), length).checked()
    return {sample.id: row.tolist() for sample, row in zip(samples, found.ids, strict=True)}


@pytest.mark.parametrize("beams", [1, 3])
def test_drawn_answers_belong_to_the_sample(beams: int) -> None:
    loaded = toy(**DRAWN, num_beams=beams)
    together = answers(loaded, SAMPLES)
    assert len({tuple(row) for row in together.values()}) == len(SAMPLES)
    assert answers(loaded, SAMPLES[::-1]) == together
    for sample in SAMPLES:
        assert answers(loaded, [sample]) == {sample.id: together[sample.id]}
    renamed = replace(SAMPLES[1], id="another name", answer="?", type="?")
    assert answers(loaded, [renamed])["another name"] == together[SAMPLES[1].id]
    assert answers(toy(), SAMPLES) != together


def test_drawing_leaves_the_random_state_alone() -> None:
    loaded = toy(**DRAWN)
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    answers(loaded, SAMPLES)
    assert torch.rand(3).equal(wanted)


def test_seeds_are_those_of_what_the_model_sees() -> None:
    seeds = [sample_seed(sample) for sample in ToyTask().samples()]
    assert len(set(seeds)) == len(seeds)
    first, second = ToyTask().samples()[:2]  # of one picture
    assert sample_seed(replace(second, question=first.question)) == sample_seed(first)
    assert sample_seed(replace(first, images=ToyTask().samples()[2].images)) != sample_seed(first)


class Seen(ToyTask):
    """Remembers what it was asked to score; a tune sees the same samples as an experiment."""

    def calibration(self, count: int) -> list[Sample]:
        return list(self.samples()[:count])


class Drawing(ToyModel):
    """Draws its answers."""

    def load(self) -> LoadedModel:
        return replace(super().load(), generation=DRAWN)


def test_equal_answers_in_experiments_tunes_and_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of different sizes, in different places of the code."""
    said: dict[str, str] = {}

    def score(self: Seen, sample: Sample, text: str) -> float:
        said[sample.id] = text
        return 0.0

    monkeypatch.setattr(Seen, "score", score)
    loaded, count, length = Drawing().load(), 10, 5

    task, model = Seen(), Drawing()
    answering = Answering(config("-", model=model, task=task, max_new_tokens=length), loaded)
    unpruned = next(answering.config.series())
    batches, in_experiment = Batches(task.samples(), count, 4), {}
    for number in batches.numbers:
        (batch,) = batches.read(number, loaded, None)
        work = BatchInWork(batch)
        in_experiment |= {row["sample"]: row["prediction"] for row in answering.answer(unpruned, work)}

    said.clear()
    tune = TuneConfig(
        model=model,
        task=task,
        budget={"name": "layer_average", "ratio": 0.5},  # type: ignore[arg-type]
        samples=count,
        batch_size=3,
        max_new_tokens=length,
        labels=True,
        output="-",
    )
    found = read_samples(task, loaded, count, 3, strict=True)
    for number, inputs in enumerate(found.batches):
        tune_answer(tune, loaded, found)(number, inputs, None)
    in_tune = dict(said)

    in_look = {
        sample.id: answer_text(loaded, replace(sample, id="a.png"), loaded.encode([sample]), length)
        for sample in task.samples()[:count]
    }
    assert in_experiment == in_tune == in_look
    assert len(set(in_look.values())) == count


# ---- logits that are no numbers ----


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("options", [{}, {"num_beams": 2}, DRAWN], ids=["greedy", "beams", "drawn"])
def test_broken_logits_name_the_sample(value: float, options: dict[str, Any]) -> None:
    loaded = toy(**options)
    samples = ToyTask().samples()[:3]  # two, three and four letters: only the last one has a d
    break_prompts(loaded, letter("d"), value)
    found = generate(loaded, samples, loaded.encode(samples), 3)
    assert list(found.problems) == [2]
    with pytest.raises(UnsupportedFeatureError, match="logits at answer token 1 of sample 's2' hold NaN or infinity"):
        found.checked()
    generate(loaded, samples[:2], loaded.encode(samples[:2]), 3).checked()


def test_tokens_that_are_ruled_out_are_no_fault() -> None:
    loaded = toy()
    break_prompts(loaded, value=-math.inf)
    samples = ToyTask().samples()[:3]
    generate(loaded, samples, loaded.encode(samples), 3).checked()


def test_what_is_computed_behind_an_answer_does_not_count() -> None:
    """A batch goes on until its last answer ends; rows whose answers have ended read padding meanwhile."""
    loaded = toy()
    samples = ToyTask().samples()[:2]
    inputs = loaded.encode(samples)
    ids = generate(loaded, samples, inputs, 4).ids
    end = int(ids[0, 1])
    assert end not in ids[1, :3]
    loaded.generation = {"eos_token_id": end, "pad_token_id": 0}
    steps: list[int] = []

    def spoil(module: Any, args: Any, output: Any) -> None:
        steps.append(len(steps))
        if len(steps) == 3:
            output.logits[0] = math.nan

    loaded.model.register_forward_hook(spoil)
    generate(loaded, samples, inputs, 4).checked()
    assert len(steps) >= 3


def test_which_rows_are_distributions() -> None:
    rows = torch.zeros(6, 4)
    rows[1, 0], rows[2, 0], rows[3, 0], rows[4], rows[5] = math.nan, math.inf, -math.inf, -math.inf, 6e4
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        assert is_distribution(rows.to(dtype)).tolist() == [True, False, False, True, False, True]


@pytest.mark.parametrize("score", [math.nan, 100.0, -1.0, None, "right"])
def test_scores_are_numbers_from_0_to_1(score: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ToyTask, "score", lambda self, sample, text: score)
    with pytest.raises(PluginError, match="the task ToyTask scores the answer 'w4' of sample 's0' with"):
        checked_score(ToyTask(), SAMPLES[0], "w4")
