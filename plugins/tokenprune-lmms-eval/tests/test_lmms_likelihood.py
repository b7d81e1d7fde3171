"""Multiple choice: the value of every choice is our own teacher forcing under `tp.apply`, for families and methods."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from evaluation import FASTV, RANDOM, answers, arguments, evaluate
from local_tasks import LocalTasks

import tokenprune as tp
from tokenprune.authoring import FromRegistry, Sample, picture_of

CHOICES = ("w20", "w21 w22", "w23")
METHODS = {"unpruned": None, "fastv": FASTV, "random": RANDOM, "divprune": "divprune"}


def by_hand(folder: Path, tasks: LocalTasks, method: tp.Method | None) -> list[list[tuple[float, bool]]]:
    """The log-probability of every choice of every document: one prefill, then a step for every token but the last."""
    loaded = (
        FromRegistry("models")
        .build({"name": "hf", "checkpoint": str(folder), "device": "cpu", "dtype": "float32", "instruction": ""})
        .load()
    )
    found = []
    for number, image in enumerate(tasks.images):
        sample = Sample("s", (picture_of(image, "s"),), "what is this", "", "", "s")
        found.append([value_of(loaded, sample, choice, method, number) for choice in CHOICES])
    return found


@torch.no_grad()
def value_of(loaded: Any, sample: Sample, choice: str, method: tp.Method | None, number: int) -> tuple[float, bool]:
    ids = loaded.processor.tokenizer(choice, add_special_tokens=False)["input_ids"]
    inputs = loaded.encode([sample])
    with tp.apply(loaded.model, method) as run:
        if method is not None:
            run.annotate(sample_ids=[number])
        out = loaded.model.generate(
            **inputs,
            max_new_tokens=len(ids),
            min_new_tokens=len(ids),
            do_sample=False,
            prefix_allowed_tokens_fn=lambda _, seen: [ids[len(seen) - inputs["input_ids"].shape[1]]],
            output_logits=True,
            return_dict_in_generate=True,
        )
    assert out.sequences[0, inputs["input_ids"].shape[1] :].tolist() == ids
    steps = [step[0].double().log_softmax(-1) for step in out.logits]
    total = sum(float(step[token]) for step, token in zip(steps, ids, strict=True))
    ruled_out = loaded.model.generation_config.suppress_tokens or []
    for step in steps:
        step[ruled_out] = -torch.inf
    return total, all(int(step.argmax()) == token for step, token in zip(steps, ids, strict=True))


def loaded_method(name: str, folder: Path) -> tuple[str, tp.Method | None]:
    """What ``method=`` says, and the method."""
    entry = METHODS[name]
    if entry is None:
        return "unpruned", None
    if "\n" in entry:
        file = folder / f"{name}.yaml"
        file.write_text(entry, encoding="utf-8")
        entry = str(file)
    return entry, tp.load_method(entry, keep_ratio=0.5)


@pytest.mark.parametrize("family", ["llava", "qwen2.5-vl", "internvl", "smolvlm"])
def test_the_value_of_every_choice(
    family: str, checkpoint: Callable[[str], Path], tasks: LocalTasks, tmp_path: Path
) -> None:
    """In batches of four, which mix documents and lengths. lmms-eval takes the smallest value: it is a loss."""
    name = tasks.choices(CHOICES)
    values = {}
    for method in METHODS:
        entry, made = loaded_method(method, tmp_path)
        more = {} if made is None else {"keep_ratio": 0.5}
        found = evaluate(
            tasks, [name], arguments(checkpoint(family), method=entry, **more), force_simple=True, batch_size=4
        )
        direct = by_hand(checkpoint(family), tasks, made)
        given = answers(found, name)
        for row, expected in zip(given, direct, strict=True):
            assert [loss for loss, _ in row] == pytest.approx([-value for value, _ in expected], abs=1e-5)
            assert [greedy for _, greedy in row] == [greedy for _, greedy in expected]
        best = [max(range(3), key=lambda place: row[place][0]) for row in direct]
        assert found["results"][name]["acc,none"] == sum(place == 0 for place in best) / len(best)
        values[method] = [loss for row in given for loss, _ in row]
    assert all(values[method] != values["unpruned"] for method in ("fastv", "random", "divprune"))


def test_the_mean_over_tokens(checkpoint: Callable[[str], Path], tasks: LocalTasks) -> None:
    name = tasks.choices(CHOICES)
    given = arguments(checkpoint("llava"), method="unpruned")
    total, mean = (
        answers(evaluate(tasks, [name], {**given, "likelihood": way}, force_simple=True), name)
        for way in ("sum", "mean")
    )
    for one, other in zip(total, mean, strict=True):
        assert [value for value, _ in one] == pytest.approx(
            [value * count for (value, _), count in zip(other, (1, 2, 1), strict=True)]
        )


def test_a_task_of_log_likelihoods_gets_log_probabilities(checkpoint: Callable[[str], Path], tasks: LocalTasks) -> None:
    """Here lmms-eval wants what its interface says, and no loss."""
    name = tasks.choices(CHOICES)
    losses = answers(
        evaluate(tasks, [name], arguments(checkpoint("llava"), method="unpruned"), force_simple=True), name
    )
    other = tasks.add(
        "tp_perplexity",
        [{**row, "answer": "w20"} for row in tasks.rows()],
        output_type="loglikelihood",
        doc_to_visual="utils.pictures",
        generation_kwargs=None,
        process_results="utils.value",
        metric_list=[{"metric": "value", "aggregation": "mean", "higher_is_better": True}],
    )
    (tasks.folder / "utils.py").write_text(
        (tasks.folder / "utils.py").read_text() + "\n\ndef value(doc, results):\n    return {'value': results[0][0]}\n"
    )
    text = (tasks.folder / f"{other}.yaml").read_text().replace("utils.value", "!function utils.value")
    (tasks.folder / f"{other}.yaml").write_text(text)
    found = evaluate(tasks, [other], arguments(checkpoint("llava"), method="unpruned"), force_simple=True)
    assert found["results"][other]["value,none"] == pytest.approx(-sum(row[0][0] for row in losses) / len(losses))
