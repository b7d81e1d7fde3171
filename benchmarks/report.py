"""Size and time of the page that a run leaves, for all methods of `benchmarks/tables.yaml` at all its shares.

    python benchmarks/report.py [--rounds 5] [--questions 1000] [--output FOLDER]

The answers are made up: nothing is loaded or pruned. Ten examples have a picture of 336 pixels and the patches that
every method kept of 24 x 24. The first page of a process also makes the script of the charts library, which later
pages use again; it has a row of its own.
"""

from __future__ import annotations

import argparse
import io
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import yaml
from PIL import Image
from tables import PLAN, cells

from tokenprune.adapters.views import View
from tokenprune.drawing.vega import library
from tokenprune.experiment import ExperimentConfig, ExperimentResult
from tokenprune.experiment.answers import Answers
from tokenprune.experiment.report import experiment_page
from tokenprune.experiment.series import Series
from tokenprune.output.lines import Row
from tokenprune.pictures.look import Look, StageLook
from tokenprune.report.html import render
from tokenprune.report.page import Example, ExamplePanel, Picture

Made = TypeVar("Made")
TOKENS, SIDE, LAYERS = 576, 24, 30


def rows(series: list[Series], questions: int) -> Iterator[Row]:
    """Made-up answers: a share of right ones per series, and costs that follow from the share of tokens kept."""
    titles = sorted({item.method_name for item in series})
    for number, item in enumerate(series):
        rng = np.random.default_rng(number)
        share = float((item.budget or "ratio 1").split()[-1])
        place = titles.index(item.method_name)
        skill = (
            0.95 if item.unpruned else 0.35 + 0.55 * share**0.3 * (0.5 + 0.5 * (place * 7 % len(titles)) / len(titles))
        )
        first = place % 4
        average = TOKENS * (first + (LAYERS - first) * share) / LAYERS
        for position in range(questions):
            right = bool(rng.random() < skill)
            yield {
                "series": item.key,
                "method": item.method_name,
                "budget": item.budget,
                "seed": item.seed,
                "position": position,
                "sample": str(position),
                "type": ("attribute", "exist", "locate", "recognise")[position % 4],
                "group": str(position // 4),
                "answer": "yes",
                "prediction": "yes" if right else "no",
                "score": float(right),
                "visual_before": TOKENS,
                "visual_after": round(TOKENS * share),
                "layer_average": average,
                "flops": average * 1e9,
                "flops_unpruned": TOKENS * 1e9,
                "kv_bytes": int(average * 1000),
                "kv_bytes_unpruned": TOKENS * 1000,
            }


def examples(series: list[Series]) -> tuple[Example, ...]:
    """Ten made-up examples."""
    rng = np.random.default_rng(0)
    cells = np.stack([np.zeros(TOKENS, dtype=np.int64), *np.divmod(np.arange(TOKENS), SIDE)], axis=1)
    view = View(0, (0.0, 0.0, 1.0, 1.0), SIDE, SIDE)
    made = []
    for number in range(10):
        panels = []
        for item in {(item.method_name, item.budget): item for item in series}.values():
            share = float((item.budget or "ratio 1").split()[-1])
            kept = np.zeros(TOKENS, dtype=bool)
            kept[rng.permutation(TOKENS)[: round(TOKENS * share)]] = True
            stages = () if item.unpruned else (StageLook(2, kept),)
            right = item.unpruned or bool(rng.random() < 0.6)
            look = Look(item.method_name, (view,), cells, stages)
            answer = "yes" if right else "no"
            panels.append(ExamplePanel(item.method_name, item.budget or "", answer, right, right, look))
        made.append(Example(f"made-up {number}", "Is it so?", "yes", (picture(rng),), tuple(panels)))
    return tuple(made)


def picture(rng: np.random.Generator) -> Picture:
    """A picture with soft blobs, about as hard to compress as a photograph."""
    small = Image.fromarray(rng.integers(0, 255, (42, 42, 3), dtype=np.uint8))
    file = io.BytesIO()
    small.resize((336, 336), Image.Resampling.BICUBIC).save(file, "JPEG", quality=85)
    return Picture(file.getvalue(), "image/jpeg")


def median_seconds(work: Callable[[], Made], rounds: int) -> tuple[Made, float]:
    """The result of some work, and the median of the time that it takes."""
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        made = work()
        seconds.append(time.perf_counter() - start)
    return made, statistics.median(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--questions", type=int, default=1000)
    parser.add_argument("--output", type=Path, help="also write the page into this folder")
    args = parser.parse_args()
    plan = yaml.safe_load(PLAN.read_text(encoding="utf-8"))
    cell = cells(plan)[0]
    budgets = [{"name": "layer_average", "ratio": share} for share in plan["shares"]]
    config = ExperimentConfig.from_dict({**cell.config(cell.entries).model_dump(mode="json"), "budgets": budgets})
    series = list(config.series())
    result = ExperimentResult(str(args.output or "nowhere"), Answers.read(rows(series, args.questions)))
    if args.output is not None:
        args.output.mkdir(parents=True, exist_ok=True)
        (args.output / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")
    script, once = median_seconds(library, 1)
    table: list[tuple[str, str, float]] = [("script of the charts library", size(script), once)]
    page: Any
    for name, shown in (("without examples", ()), ("with ten examples", examples(series))):
        page, numbers = median_seconds(lambda shown=shown: experiment_page(result, shown), args.rounds)
        html, drawn = median_seconds(lambda page=page: render(page), args.rounds)
        table += [(f"numbers, {name}", "", numbers), (f"HTML, {name}", size(html), drawn)]
    if args.output is not None:
        (args.output / "report.html").write_text(html, encoding="utf-8")
    methods = len({item.method_name for item in series}) - 1
    print(f"{methods} methods, {len(series)} series, {args.questions} questions, median of {args.rounds} rounds\n")
    print("| part | size | seconds |\n|---|---|---|")
    for name, bytes_, seconds in table:
        print(f"| {name} | {bytes_} | {seconds:.2f} |")


def size(text: str) -> str:
    return f"{len(text.encode()) / 1e6:.2f} MB"


if __name__ == "__main__":
    main()
