"""The pictures of the README: what methods keep of one test picture, at equal cost, and what they answer.

    python benchmarks/pictures.py --output benchmarks/results/pictures

The question is the first one of the test split: nobody chose it for its answers. Of a picture every method may spend a
layer average of 22.2 % of the visual tokens; of the frames of a clip it keeps 11.2 %. ``front`` is the picture of the
README: a ninth of the tokens, random ones before the language model as ``entropyprune`` does it, drawn so large that it
can be read at 400 pixels, on white.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

import tokenprune as tp
from tokenprune.models.base import LoadedModel, ModelSpec
from tokenprune.tasks.base import Sample, Task, sample_pictures
from tokenprune_embedded.models import Clips, Digits
from tokenprune_embedded.tasks.digits import Digits as DigitsTask
from tokenprune_embedded.tasks.moving_digits import MovingDigits

CALIBRATION = 16
#: Named method -> what of it is replaced.
Methods = Mapping[str, Mapping[str, Any]]


def answer(loaded: LoadedModel, inputs: dict[str, Any]) -> str:
    """The greedy answer."""
    ids = loaded.model.generate(**inputs, max_new_tokens=4, do_sample=False)
    return loaded.decode(ids[:, inputs["input_ids"].shape[1] :])[0]


def looks(
    loaded: LoadedModel, task: Task, sample: Sample, methods: Methods, budget: Mapping[str, Any]
) -> list[tp.Look]:
    """What every method keeps of a sample; the unpruned model first."""
    inputs, pictures = loaded.encode([sample]), sample_pictures(sample)
    calibration = [loaded.encode([other]) for other in task.calibration(CALIBRATION)]
    words = {"question": sample.question, "expected": sample.answer}
    found: list[tp.Look] = []
    for name, other in methods.items():
        own = tp.load_method(name).model_dump(mode="json")
        method = tp.Method.from_dict({**own, **other, "budget": budget, "label": name})
        with tp.apply(loaded.model, method, calibration=calibration) as run:
            run.annotate(sample_ids=[0])
            text = answer(loaded, inputs)
        found.append(run.look(pictures, loaded.processor, answer=text, **words))
    first = found[0]
    unpruned = tp.Look("unpruned", first.views, first.cells, (), first.pictures, answer=answer(loaded, inputs), **words)
    return [unpruned, *found]


def draw_front(shown: Sequence[tp.Look], path: Path) -> None:
    """Draw the picture as each look leaves it: kept patches as they are, all others faded. Few words, large."""
    figure, axes = plt.subplots(1, len(shown), figsize=(12, 6.2), facecolor="white", dpi=100)
    figure.suptitle(f"“{shown[0].question}”", fontsize=34, color="black")
    for axis, look in zip(axes, shown, strict=True):
        kept = look.grid(0, look.kept, False).astype(bool)
        picture = look.pictures[0]
        rows, columns = (side // cells for side, cells in zip(picture.shape[:2], kept.shape, strict=True))
        mask = kept.repeat(rows, axis=0).repeat(columns, axis=1)[..., None]
        axis.imshow(np.where(mask, picture, (0.15 * picture + 0.85 * 235).astype(np.uint8)), interpolation="nearest")
        axis.set(xticks=[], yticks=[])
        axis.set_title(look.method, fontsize=32, color="black")
        text = f"{look.kept.sum()} tokens\n“{look.answer}” {'✓' if look.right else '✗'}"
        axis.set_xlabel(text, fontsize=32, color="black" if look.right else "#b00020", linespacing=1.3)
    figure.subplots_adjust(left=0.01, right=0.99, top=0.8, bottom=0.19, wspace=0.06)
    figure.savefig(path)
    plt.close(figure)


def draw_scores(shown: Sequence[tp.Look], path: Path) -> None:
    """Draw what each look keeps and the scores that it saw: one below the other, the frames of a clip side by side."""
    wide = len(shown[0].pictures) == 1
    tp.draw(shown, path, width=11 if wide else 8, columns=len(shown) if wide else 1, dpi=120)


@dataclass(frozen=True)
class Picture:
    """One picture: the first question of a task, asked with several methods at one budget.

    Attributes:
        model: The model.
        task: The task.
        methods: The methods.
        budget: What each may keep.
        draw: Draws the looks into a file.
    """

    model: ModelSpec
    task: Task
    methods: Methods
    budget: Mapping[str, Any]
    draw: Callable[[Sequence[tp.Look], Path], None] = draw_scores


PICTURES = {
    "front": Picture(
        Digits(),
        DigitsTask(split="test"),
        {"entropyprune": {}, "random": {"layers": {"name": "fixed", "layers": [0]}}},
        {"name": "layer_average", "ratio": 0.1112},
        draw_front,
    ),
    "digits": Picture(
        Digits(),
        DigitsTask(split="test"),
        {"entropyprune": {}, "visionzip": {}, "fastv": {}, "random": {}},
        {"name": "layer_average", "ratio": 0.222},
    ),
    "clips": Picture(
        Clips(), MovingDigits(split="test"), {"vscan": {}, "random": {}}, {"name": "keep_ratio", "ratio": 0.112}
    ),
}


def main(folder: Path, names: list[str]) -> None:
    """Draw the pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        picture = PICTURES[name]
        sample = picture.task.samples()[0]
        shown = looks(picture.model.load(), picture.task, sample, picture.methods, picture.budget)
        for look in shown:
            print(f"{name}: {look.method}: {look.kept.sum()} of {look.tokens} visual tokens, {look.answer!r}")
        picture.draw(shown, folder / f"{name}.png")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/pictures"))
    parser.add_argument("--only", choices=sorted(PICTURES), nargs="*", default=sorted(PICTURES))
    arguments = parser.parse_args()
    main(arguments.output, arguments.only)
