"""Answers and costs under lmms-eval are those of ``tokenprune run``, for families, kinds of prompts and methods."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from evaluation import FASTV, RANDOM, answers, arguments, asked_by_run, costs, evaluate
from local_tasks import COUNT, LocalTasks

FAMILIES = ("llava", "qwen2.5-vl", "internvl", "smolvlm")
KEEP = {"name": "keep_ratio", "ratio": 0.5}
#: Name -> the entry of an experiment's methods, or the YAML file of one.
METHODS: dict[str, str] = {"fastv": FASTV, "random": RANDOM, "divprune": "divprune", "entropyprune": "entropyprune"}


def rows_of(kind: str, folder: Path) -> list[dict[str, Any]]:
    """The questions of a task, as `tokenprune run` reads them."""
    shown: dict[str, Callable[[int], dict[str, Any]]] = {
        "pictures": lambda place: {"image": f"{folder}/{place}.png"},
        "pairs": lambda place: {"images": [f"{folder}/{place}.png", f"{folder}/other-{place}.png"]},
        "videos": lambda place: {"video": f"{folder}/{place}.mp4"},
    }
    return [{**shown[kind](place), "question": "what is this", "answer": "w62"} for place in range(COUNT)]


CELLS = [
    (family, kind, method)
    for family in FAMILIES
    for kind in ("pictures", "pairs", "videos")
    for method in METHODS
    if not (family == "llava" and kind == "videos")
]


@pytest.mark.parametrize("family, kind, method", CELLS)
def test_answers_and_costs(
    family: str, kind: str, method: str, checkpoint: Callable[[str], Path], tasks: LocalTasks, tmp_path: Path
) -> None:
    name = getattr(tasks, kind)()
    entry = METHODS[method]
    if "\n" in entry:
        file = tmp_path / f"{method}.yaml"
        file.write_text(entry, encoding="utf-8")
        entry = str(file)
    measured = 2 if method == "entropyprune" else 0
    rows = rows_of(kind, tasks.folder)
    model = {"name": "hf", "checkpoint": str(checkpoint(family)), "device": "cpu", "dtype": "float32", "instruction": ""}
    direct = asked_by_run(tmp_path / "direct", rows, model, {"name": entry, "label": "m"}, KEEP, measured)
    more: dict[str, Any] = {"method": entry, "keep_ratio": 0.5}
    if measured:
        more |= {"calibration": str(tmp_path / "direct" / "questions.jsonl"), "calibration_samples": measured}
    for series, given in (("pruned", more), ("unpruned", {"method": "unpruned"})):
        found = evaluate(tasks, [name], arguments(checkpoint(family), **given))
        assert answers(found, name) == [row["prediction"] for row in direct[series]]
        for cost, row in zip(costs(found, name), direct[series], strict=True):
            numbers = [key for key in cost if key not in ("input_tokens", "output_tokens")]
            assert len(numbers) == 7
            assert {key: cost[key] for key in numbers} == {key: row[key] for key in numbers}
    assert [row["visual_after"] for row in direct["pruned"]] == [row["visual_before"] // 2 for row in direct["pruned"]]
    if measured:
        assert direct["pruned"][0]["layer_average"] <= direct["unpruned"][0]["layer_average"]


@pytest.mark.parametrize("method", ["divprune", "visionzip", "random"])
def test_the_embedded_model(method: str, tasks: LocalTasks, tmp_path: Path) -> None:
    """A model that a plugin brings, with a chat template of its own making; a budget of the layer average."""
    name = tasks.pictures()
    rows = rows_of("pictures", tasks.folder)
    budget = {"name": "layer_average", "ratio": 0.5}
    direct = asked_by_run(tmp_path / "direct", rows, {"name": "digits"}, method, budget)
    found = evaluate(tasks, [name], {"model": "digits", "method": method, "average_ratio": 0.5})
    assert answers(found, name) == [row["prediction"] for row in direct["pruned"]]
    assert [cost["flops"] for cost in costs(found, name)] == [row["flops"] for row in direct["pruned"]]
    unpruned = evaluate(tasks, [name], {"model": "digits", "method": "unpruned"})
    assert answers(unpruned, name) == [row["prediction"] for row in direct["unpruned"]]


def test_smaller_pictures(checkpoint: Callable[[str], Path], tasks: LocalTasks, tmp_path: Path) -> None:
    name = tasks.pictures()
    model = {"name": "hf", "checkpoint": str(checkpoint("qwen2.5-vl")), "device": "cpu", "dtype": "float32"}
    rows = rows_of("pictures", tasks.folder)
    direct = asked_by_run(tmp_path / "direct", rows, {**model, "instruction": ""}, "downsampled", KEEP)
    found = evaluate(tasks, [name], arguments(checkpoint("qwen2.5-vl"), method="downsampled", keep_ratio=0.5))
    assert answers(found, name) == [row["prediction"] for row in direct["pruned"]]
    for cost, row in zip(costs(found, name), direct["pruned"], strict=True):
        assert cost["visual_after"] == row["visual_after"] < cost["visual_before"] == row["visual_before"]


def test_simple_prompts_are_those_of_chat_tasks(checkpoint: Callable[[str], Path], tasks: LocalTasks) -> None:
    name = tasks.pictures()
    given = arguments(checkpoint("llava"), method="divprune", keep_ratio=0.25)
    assert answers(evaluate(tasks, [name], given), name) == answers(
        evaluate(tasks, [name], given, force_simple=True), name
    )


def test_answers_do_not_depend_on_batches_and_their_padding(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    """Questions of different lengths, so that batches are padded; a random method, so that numbers count."""
    tasks = LocalTasks(tmp_path / "tasks", ["what", "what is this", "w20 w21 w22 w23 w24", "is"])
    name = tasks.pictures()
    (tmp_path / "random.yaml").write_text(RANDOM, encoding="utf-8")
    given = arguments(checkpoint("qwen2.5-vl"), method=tmp_path / "random.yaml")
    one, three = (answers(evaluate(tasks, [name], given, batch_size=size), name) for size in (1, 3))
    assert one == three
    assert len(set(one)) > 1


def test_a_tokenizer_that_pads_on_the_right(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    """Its setting does not matter: prompts are padded on the left."""
    import shutil

    import transformers as tf

    folder = tmp_path / "right"
    shutil.copytree(checkpoint("llava"), folder)
    processor = tf.AutoProcessor.from_pretrained(folder)
    processor.tokenizer.padding_side = "right"
    processor.save_pretrained(folder)
    tasks = LocalTasks(tmp_path / "tasks", ["what", "w20 w21 w22 w23 w24 w25"])
    name = tasks.pictures()
    given = {"method": "divprune", "keep_ratio": 0.5}
    found = [answers(evaluate(tasks, [name], arguments(at, **given)), name) for at in (folder, checkpoint("llava"))]
    assert found[0] == found[1]
