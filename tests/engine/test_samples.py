"""Sample ids: random scores belong to a sample, whatever batch it comes in."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import tokenprune as tp
from tests.support.simple import CASE, pair
from tokenprune.engine.method import SampleCounter, given_ids
from tokenprune.errors import ScoreError

RANDOM = tp.Method(
    layers={"name": "fixed", "layers": [1]},
    pruner={"name": "topk", "scorer": "random"},
    budget={"name": "keep_count", "tokens": 5},
)


def one_question_over_pictures(pictures: int) -> dict[str, Tensor]:
    """The same ids in every row, another picture each."""
    model = CASE.build()
    batch = CASE.batch(model, pictures).inputs
    first = batch["input_ids"][:1]
    return {
        **batch,
        "input_ids": first.expand(pictures, -1).clone(),
        "attention_mask": torch.ones(pictures, first.shape[1]),
    }


@torch.no_grad()
def kept(batches: list[dict[str, Tensor]], **more: object) -> list[list[int]]:
    """What is kept of every sample, over some batches of one run."""
    model, _ = pair()
    rows = []
    with tp.apply(model, RANDOM) as run:
        for batch in batches:
            model.generate(**batch, max_new_tokens=2, **more)
            rows += run.stages[0].kept.tolist()
    return rows


def part(batch: dict[str, Tensor], where: slice) -> dict[str, Tensor]:
    return {name: value[where] for name, value in batch.items()}


def test_one_question_over_three_pictures() -> None:
    """Equal neighbours are not beams: each picture has a choice of its own, in every batch."""
    batch = one_question_over_pictures(4)
    together = kept([batch])
    assert len({tuple(row) for row in together}) == 4
    assert kept([part(batch, slice(0, 1)), part(batch, slice(1, 4))]) == together
    assert kept([part(batch, slice(0, 3)), part(batch, slice(3, 4))]) == together


@pytest.mark.parametrize("more", [{"num_beams": 3}, {"do_sample": True, "num_return_sequences": 3}], ids=str)
def test_copies_of_a_sample_share_a_choice(more: dict[str, object]) -> None:
    """Beams and returned sequences are copies; the samples behind them keep their numbers."""
    batch = one_question_over_pictures(3)
    plain = kept([batch, batch])
    copies = kept([batch], **more)
    assert copies == [row for row in plain[:3] for _ in range(3)]
    model, _ = pair()
    with tp.apply(model, RANDOM) as run, torch.no_grad():
        model.generate(**batch, max_new_tokens=2, **more)
        model(**batch)
        assert run.stages[0].kept.tolist() == plain[3:]


def test_numbers() -> None:
    counter = SampleCounter()
    assert counter.number(3, 1) == (0, 1, 2)
    assert counter.number(4, 2) == (3, 3, 4, 4)
    assert counter.number(3, 2) == (5, 6, 7)  # no multiple: nothing is a copy
    assert given_ids([7, 9], 4) == (7, 7, 9, 9)
    with pytest.raises(ScoreError, match="2 sample_ids for a batch of 3"):
        given_ids([7, 9], 3)


@torch.no_grad()
def test_no_ids_and_no_values_are_an_error() -> None:
    model, inputs = pair()
    marked = tp.Method(
        layers={"name": "fixed", "layers": [1]},
        pruner={"name": "topk", "scorer": {"name": "annotation", "field": "mark"}},
        budget={"name": "keep_count", "tokens": 5},
    )
    with tp.apply(model, RANDOM) as run:
        run.annotate(sample_ids=[])
        with pytest.raises(ScoreError, match="0 sample_ids"):
            model(**inputs)
    with tp.apply(model, marked) as run:
        run.annotate(mark=[])
        with pytest.raises(ScoreError, match="has 0 vectors"):
            model(**inputs)


@torch.no_grad()
def test_a_call_inside_a_generation_has_samples_of_its_own() -> None:
    """A logits processor that runs the model on two pictures while two beams are generated: they are no beams."""
    batch = one_question_over_pictures(2)
    model, _ = pair()
    inner: list[list[list[int]]] = []

    def ask(ids: Tensor, scores: Tensor) -> Tensor:
        if not inner:
            inner.append([])
            model(**batch)
            inner[0] = run.stages[0].kept.tolist()
        return scores

    with tp.apply(model, RANDOM) as run:
        model.generate(**part(batch, slice(0, 1)), max_new_tokens=2, num_beams=2, logits_processor=[ask])
    assert inner[0][0] != inner[0][1]
