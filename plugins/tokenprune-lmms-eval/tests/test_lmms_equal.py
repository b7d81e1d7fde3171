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
    (family, kind)
    for family in FAMILIES
    for kind in ("pictures", "pairs", "videos")
    if not (family == "llava" and kind == "videos")
]


def check_equal(found: dict[str, Any], name: str, direct: list[dict[str, Any]]) -> None:
    """Compare the answers to a task, and what each of them cost, with the rows of an experiment."""
    assert answers(found, name) == [row["prediction"] for row in direct]
    for cost, row in zip(costs(found, name), direct, strict=True):
        numbers = [key for key in cost if key not in ("input_tokens", "output_tokens")]
        assert len(numbers) == 7
        assert {key: cost[key] for key in numbers} == {key: row[key] for key in numbers}


@pytest.mark.parametrize("family, kind", CELLS)
def test_answers_and_costs(
    family: str, kind: str, checkpoint: Callable[[str], Path], tasks: LocalTasks, tmp_path: Path
) -> None:
    """Without pruning, and with four methods at half of the tokens, one of which measures the model first."""
    name = getattr(tasks, kind)()
    entries = {}
    for method, entry in METHODS.items():
        if "\n" in entry:
            (tmp_path / f"{method}.yaml").write_text(entry, encoding="utf-8")
            entry = str(tmp_path / f"{method}.yaml")
        entries[method] = entry
    rows = rows_of(kind, tasks.folder)
    model = {
        "name": "hf",
        "checkpoint": str(checkpoint(family)),
        "device": "cpu",
        "dtype": "float32",
        "instruction": "",
    }
    methods = [{"name": entry, "label": method} for method, entry in entries.items()]
    direct = asked_by_run(tmp_path / "direct", rows, model, methods, KEEP, calibration=2)
    measured = {"calibration": tmp_path / "direct" / "questions.jsonl", "calibration_samples": 2}
    for method, entry in entries.items():
        given = {"method": entry, "keep_ratio": 0.5, **(measured if method == "entropyprune" else {})}
        check_equal(evaluate(tasks, [name], arguments(checkpoint(family), **given)), name, direct[method])
        assert [row["visual_after"] for row in direct[method]] == [row["visual_before"] // 2 for row in direct[method]]
    check_equal(evaluate(tasks, [name], arguments(checkpoint(family), method="unpruned")), name, direct["unpruned"])
    pruned = [[row["prediction"] for row in direct[method]] for method in entries]
    assert any(texts != [row["prediction"] for row in direct["unpruned"]] for texts in pruned), (
        "pruning changes nothing"
    )


def test_the_embedded_model(tasks: LocalTasks, tmp_path: Path) -> None:
    """A model that a plugin brings, with prompts of its own making; a budget of the layer average."""
    name = tasks.pictures()
    methods = ["divprune", "visionzip", "random"]
    budget = {"name": "layer_average", "ratio": 0.5}
    direct = asked_by_run(tmp_path / "direct", rows_of("pictures", tasks.folder), {"name": "digits"}, methods, budget)
    for method in methods:
        found = evaluate(tasks, [name], {"model": "digits", "method": method, "average_ratio": 0.5})
        check_equal(found, name, direct[method])
    check_equal(evaluate(tasks, [name], {"model": "digits", "method": "unpruned"}), name, direct["unpruned"])


def test_smaller_pictures(checkpoint: Callable[[str], Path], tasks: LocalTasks, tmp_path: Path) -> None:
    name = tasks.pictures()
    model = {"name": "hf", "checkpoint": str(checkpoint("qwen2.5-vl")), "device": "cpu", "dtype": "float32"}
    rows = rows_of("pictures", tasks.folder)
    direct = asked_by_run(tmp_path / "direct", rows, {**model, "instruction": ""}, ["downsampled"], KEEP)["downsampled"]
    check_equal(
        evaluate(tasks, [name], arguments(checkpoint("qwen2.5-vl"), method="downsampled", keep_ratio=0.5)), name, direct
    )
    assert all(row["visual_after"] < row["visual_before"] for row in direct)


def test_simple_prompts_are_those_of_chat_tasks(checkpoint: Callable[[str], Path], tasks: LocalTasks) -> None:
    name = tasks.pictures()
    given = arguments(checkpoint("llava"), method="divprune", keep_ratio=0.25)
    assert answers(evaluate(tasks, [name], given), name) == answers(
        evaluate(tasks, [name], given, force_simple=True), name
    )


def test_answers_do_not_depend_on_batches_and_their_padding(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
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
