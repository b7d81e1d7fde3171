"""The pictures of the README: what methods keep of one test picture, at equal cost, and what they answer.

    python benchmarks/pictures.py --output benchmarks/results/pictures

The question is the first one of the test split: nobody chose it for its answers. Of a picture every method may spend a
layer average of 22.2 % of the visual tokens; of the frames of a clip it keeps 11.2 %.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

import tokenprune as tp
from tokenprune.models.base import LoadedModel, ModelSpec
from tokenprune.tasks.base import Sample, Task, sample_pictures
from tokenprune_embedded.models import Clips, Digits
from tokenprune_embedded.tasks.digits import Digits as DigitsTask
from tokenprune_embedded.tasks.moving_digits import MovingDigits

CALIBRATION = 16
#: Name -> model, task, methods, budget.
PICTURES: dict[str, tuple[ModelSpec, Task, tuple[str, ...], dict[str, Any]]] = {
    "digits": (
        Digits(),
        DigitsTask(split="test"),
        ("entropyprune", "visionzip", "fastv", "random"),
        {"name": "layer_average", "ratio": 0.222},
    ),
    "clips": (Clips(), MovingDigits(split="test"), ("vscan", "random"), {"name": "keep_ratio", "ratio": 0.112}),
}


@torch.no_grad()
def answer(loaded: LoadedModel, inputs: dict[str, Any]) -> str:
    """The greedy answer."""
    ids = loaded.model.generate(**inputs, max_new_tokens=4, do_sample=False)
    return loaded.decode(ids[:, inputs["input_ids"].shape[1] :])[0]


def looks(
    loaded: LoadedModel, task: Task, sample: Sample, methods: tuple[str, ...], budget: dict[str, Any]
) -> list[tp.Look]:
    """What every method keeps of a sample; the unpruned model first."""
    inputs, pictures = loaded.encode([sample]), sample_pictures(sample)
    calibration = [loaded.encode([other]) for other in task.calibration(CALIBRATION)]
    words = {"question": sample.question, "expected": sample.answer}
    found: list[tp.Look] = []
    for name in methods:
        method = tp.Method.from_dict({**tp.load_method(name).model_dump(mode="json"), "budget": budget, "label": name})
        with tp.apply(loaded.model, method, calibration=calibration) as run:
            run.annotate(sample_ids=[0])
            text = answer(loaded, inputs)
        found.append(run.look(pictures, loaded.processor, answer=text, **words))
    first = found[0]
    unpruned = tp.Look("unpruned", first.views, first.cells, (), first.pictures, answer=answer(loaded, inputs), **words)
    return [unpruned, *found]


def main(folder: Path, names: list[str]) -> None:
    """Draw the pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        spec, task, methods, budget = PICTURES[name]
        shown = looks(spec.load(), task, task.samples()[0], methods, budget)
        wide = len(shown[0].pictures) == 1  # the frames of a clip fill the width alone
        tp.draw(shown, folder / f"{name}.png", width=11 if wide else 8, columns=len(shown) if wide else 1, dpi=120)
        for look in shown:
            print(f"{name}: {look.method}: {look.kept.sum()} of {look.tokens} visual tokens, {look.answer!r}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/pictures"))
    parser.add_argument("--only", choices=sorted(PICTURES), nargs="*", default=sorted(PICTURES))
    arguments = parser.parse_args()
    main(arguments.output, arguments.only)
