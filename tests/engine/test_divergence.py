"""The divergence from the unpruned model, against a literal computation with plain forwards."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import tokenprune as tp
from tests.support.tiny.core import CACHE
from tests.support.toy import ToyModel, ToyTask, completed, config
from tokenprune.engine.trials.divergence import answer_mask, forced_log_probabilities, mean_divergence
from tokenprune.experiment import markdown, run_experiment
from tokenprune.tasks.base import Sample


def test_forced_answers_are_teacher_forced_forwards() -> None:
    """Unpruned, the log-probabilities are those of one forward over prompt and answer."""
    loaded = ToyModel().load()
    inputs = loaded.encode(ToyTask().samples()[:3])
    answers = torch.tensor([[5, 9, 30], [7, 7, 7], [80, 2, 11]])
    found = forced_log_probabilities(loaded.model, inputs, answers)
    length = inputs["input_ids"].shape[1]
    whole = {
        **inputs,
        "input_ids": torch.cat([inputs["input_ids"], answers], 1),
        "attention_mask": torch.cat([inputs["attention_mask"], torch.ones_like(answers)], 1),
    }
    with torch.no_grad():
        logits = loaded.model(**whole).logits[:, length - 1 : -1]
    torch.testing.assert_close(found, logits.float().log_softmax(-1), rtol=1e-4, atol=1e-4)


def test_the_tokens_of_an_answer() -> None:
    ids = torch.tensor([[4, 2, 0], [4, 4, 4], [2, 0, 0], [9, 4, 4]])
    assert answer_mask(ids, 2).tolist() == [[1, 1, 0], [1, 1, 1], [1, 0, 0], [1, 1, 1]]
    assert answer_mask(ids, [2, 9]).tolist() == [[1, 1, 0], [1, 1, 1], [1, 0, 0], [1, 0, 0]]
    assert answer_mask(ids, None).all()


def test_the_divergence_is_its_definition() -> None:
    generator = torch.Generator().manual_seed(0)
    one, other = (torch.randn(2, 3, 7, generator=generator).log_softmax(-1) for _ in range(2))
    mask = torch.tensor([[True, True, False], [True, True, True]])
    for row, tokens in enumerate((2, 3)):
        kl = sum(
            float(one[row, t, v].exp() * (one[row, t, v] - other[row, t, v])) for t in range(tokens) for v in range(7)
        )
        assert float(mean_divergence(one, other, mask)[row]) == pytest.approx(kl / tokens, rel=1e-5)
    impossible = torch.tensor([[[0.0, -torch.inf]]])
    possible = torch.tensor([[[0.5, 0.5]]]).log()
    assert float(mean_divergence(impossible, possible, torch.tensor([[True]]))) == pytest.approx(0.6931, abs=1e-4)


def literal(samples: list[Sample], method: tp.Method | None) -> list[torch.Tensor]:
    """Log-probabilities of the unpruned model's two-token answers, prompt by prompt, token by token."""
    loaded = ToyModel().load()
    out = []
    for number, sample in enumerate(samples):
        inputs = loaded.encode([sample])
        with torch.no_grad():
            ids = loaded.model.generate(**inputs, max_new_tokens=2, do_sample=False)[:, -2:]
            if method is None:
                first = loaded.model(**inputs, use_cache=True)
                second = loaded.model(input_ids=ids[:, :1], **{CACHE: first[CACHE]})
            else:
                with tp.apply(loaded.model, method) as run:
                    run.annotate(sample_ids=[number])
                    first = loaded.model(**inputs, use_cache=True)
                    second = loaded.model(input_ids=ids[:, :1], **{CACHE: first[CACHE]})
        out.append(torch.stack([step.logits[0, -1].float().log_softmax(-1) for step in (first, second)]))
    return out


def test_an_experiment_measures_it(tmp_path: Path) -> None:
    changes = {"methods": ["norm-hidden-large"], "budgets": [{"name": "keep_count", "tokens": 2}], "batch_size": 1}
    result = run_experiment(config(str(tmp_path), divergence=True, task=ToyTask(questions=6), oracle=False, **changes))
    samples = list(ToyTask(questions=6).samples())
    method = tp.load_method("norm-hidden-large", keep_tokens=2)
    expected = [
        float((one.exp() * (one - other)).sum(-1).mean())
        for one, other in zip(literal(samples, None), literal(samples, method), strict=True)
    ]
    found = [row["divergence"] for row in result.rows if row["method"] == "norm-hidden-large"]
    assert found == pytest.approx(expected, rel=1e-3, abs=1e-6)
    assert min(found) > 0
    assert {row["divergence"] for row in result.rows if row["method"] == "unpruned"} == {0.0}
    text = markdown(result)
    assert "KL, nats" in text
    (written,) = re.findall(r"\| (0\.\d{2,4}) ± 0", text)
    assert float(written) == pytest.approx(sum(expected) / 6, abs=0.51 * 10 ** -len(written.partition(".")[2]))
    # a method that is added later needs the unpruned model again
    added = run_experiment(
        config(
            str(tmp_path),
            divergence=True,
            task=ToyTask(questions=6),
            oracle=False,
            **changes | {"methods": [{"name": "norm-hidden-large", "label": "again"}]},
        )
    )
    again = [row["divergence"] for row in added.rows if row["method"] == "again"]
    assert again == pytest.approx(found, rel=1e-5)


@pytest.mark.slow
def test_without_it_there_is_no_column(tmp_path: Path) -> None:
    assert "KL" not in markdown(completed(tmp_path))
