"""Does the label-free objective rank methods as their accuracy does? The nine cells of docs/tuning.md.

For every task and every share of tokens kept, each method of the committed tables runs on pictures of the training
split next to the unpruned model; no label is read. The mean of each objective over the pictures is then compared with
the accuracy in the committed table: Spearman's rank correlation over the methods, and the accuracy of the method with
the best objective.

    python benchmarks/tuning_cells.py --output benchmarks/results/tuning/cells.json

Measurements are appended to ``cells.jsonl`` next to the output, and are not made again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from tokenprune import ExperimentConfig
from tokenprune.adapters import adapter_for
from tokenprune.config import Method
from tokenprune.drawing.palette import COLOURS, GREY, MARKERS
from tokenprune.drawing.vega import figure, layer, save
from tokenprune.engine.trials.fidelity import Fidelity, UnprunedBatch
from tokenprune.experiment.series import Series
from tokenprune.run import choose_layers, chosen
from tokenprune.selectors.fixed import Fixed

ROOT = Path(__file__).resolve().parent.parent
#: Task -> experiment file with its methods and budgets, and result folders whose tables are read; later ones replace
#: rows of earlier ones.
CELLS: dict[str, tuple[str, tuple[str, ...]]] = {
    "digits": ("zoo.yaml", ("zoo", "zoo-changed", "positions")),
    "easy-vqa": ("zoo-easy-vqa.yaml", ("zoo-easy-vqa",)),
    "clips": ("zoo-video.yaml", ("zoo-video", "zoo-video-changed")),
}
SHARES = ("keep_ratio 0.33", "keep_ratio 0.112", "keep_ratio 0.05")
OBJECTIVE = "root_divergence"
PICTURES = 64
BATCH = 8


def series_of(config: ExperimentConfig) -> Iterator[Series]:
    """The methods of an experiment at the three shares, random ones with their first seed only."""
    seen = set()
    for item in config.series():
        if item.method is None or item.budget not in SHARES or item.method_name == "oracle":
            continue
        if (item.method_name, item.budget) not in seen:
            seen.add((item.method_name, item.budget))
            yield item


def measure(task: str, path: Path, done: dict[tuple[str, str, int], dict[str, Any]]) -> None:
    """Measure what is missing of one task, and append it to the file."""
    config = ExperimentConfig.from_yaml(ROOT / "examples" / CELLS[task][0])
    config = config.model_copy(update={"model": config.model.model_copy(update={"dtype": "float32"})})
    items = list(series_of(config))
    numbers = range(PICTURES // BATCH)
    if all((task, item.key, number) in done for item in items for number in numbers):
        return
    loaded = config.model.load()
    adapter = adapter_for(loaded.model)
    samples = config.task.calibration(PICTURES)
    calibration = [loaded.encode([sample]) for sample in samples[:8]]
    methods: dict[str, Method] = {}
    for item in items:
        choice = choose_layers(loaded.model, item.method, calibration)
        methods[item.key] = chosen(item.method, choice).model_copy(update={"layers": Fixed(layers=choice.layers)})
    with path.open("a", encoding="utf-8") as file:
        for number in numbers:
            missing = [item for item in items if (task, item.key, number) not in done]
            if not missing:
                continue
            part = slice(number * BATCH, (number + 1) * BATCH)
            start = time.perf_counter()
            firsts = {methods[item.key].layers.layers[0] for item in missing}
            unpruned = UnprunedBatch(adapter, loaded.encode(samples[part]), firsts, sample_ids=range(PICTURES)[part])
            for item in missing:
                method = methods[item.key]
                found = unpruned.fidelity(method, method.layers.layers).to_lists()
                row = {"task": task, "series": item.key, "method": item.method_name, "budget": item.budget}
                row["batch"] = number
                file.write(json.dumps(row | found) + "\n")
                file.flush()
            print(f"{task} batch {number}: {len(missing)} series, {time.perf_counter() - start:.1f} s", flush=True)


def read(path: Path) -> dict[tuple[str, str, int], dict[str, Any]]:
    """What was measured: (task, series, batch) -> row."""
    if not path.is_file():
        return {}
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
    return {(row["task"], row["series"], row["batch"]): row for row in rows}


def accuracies(task: str) -> dict[tuple[str, str], tuple[float, float]]:
    """(method, budget) -> accuracy and half of its interval, of the committed tables."""
    out: dict[tuple[str, str], tuple[float, float]] = {}
    for folder in CELLS[task][1]:
        path = ROOT / "benchmarks" / "results" / folder / "summary.json"
        for item in json.loads(path.read_text(encoding="utf-8")) if path.is_file() else ():
            out[item["method"], item["budget"]] = item["accuracy"]["mean"], item["accuracy"]["half"]
    return out


def spearman(one: Sequence[float], other: Sequence[float]) -> float:
    """Rank correlation; ties have their mean rank."""

    def ranks(values: Sequence[float]) -> torch.Tensor:
        tensor = torch.tensor(values, dtype=torch.float64)
        below = (tensor[:, None] > tensor).sum(1)
        equal = (tensor[:, None] == tensor).sum(1)
        return below + (equal - 1) / 2.0

    stacked = torch.stack([ranks(one), ranks(other)])
    return float(torch.corrcoef(stacked)[0, 1])


def objectives(fidelity: Fidelity) -> dict[str, float]:
    """Every objective that was tried, as a loss."""
    agreement, divergence, distance = (
        float(value.double().mean()) for value in (fidelity.agreement, fidelity.divergence, fidelity.distance)
    )
    return {
        "agreement": 1 - agreement,
        "divergence": divergence,
        "distance": distance,
        "disagreement + divergence": 1 - agreement + divergence,
        "disagreement + distance": 1 - agreement + distance,
        "agreement, then divergence": 1 - agreement + 1e-6 * divergence,
        "root_divergence": float(fidelity.divergence.double().sqrt().mean()),
    }


def summarise(done: dict[tuple[str, str, int], dict[str, Any]]) -> list[dict[str, Any]]:
    """One entry per cell."""
    cells = []
    for task in CELLS:
        table = accuracies(task)
        for share in SHARES:
            losses: dict[str, dict[str, float]] = {}
            for (name, _, _), row in done.items():
                if name == task and row["budget"] == share:
                    losses.setdefault(row["method"], {})
            for method in losses:
                parts = [
                    Fidelity.from_lists(row)
                    for (name, _, _), row in sorted(done.items())
                    if name == task and row["budget"] == share and row["method"] == method
                ]
                losses[method] = objectives(Fidelity.cat(parts))
            both = {method: table[method, share] for method in losses if (method, share) in table}
            if len(both) < 3:
                continue
            best = max(both, key=lambda method: both[method][0])
            cell: dict[str, Any] = {"task": task, "budget": share, "methods": len(both), "best": best}
            cell["best_accuracy"] = both[best][0]
            cell["best_half"] = both[best][1]
            cell["objectives"] = {}
            for name in next(iter(losses.values())):
                picked = min(both, key=lambda method, name=name: losses[method][name])  # type: ignore[misc]
                cell["objectives"][name] = {
                    "spearman": spearman([-losses[method][name] for method in both], [both[m][0] for m in both]),
                    "picked": picked,
                    "picked_accuracy": both[picked][0],
                }
            cell["points"] = {method: {**losses[method], "accuracy": both[method][0]} for method in both}
            cells.append(cell)
    return cells


def markdown(cells: Sequence[dict[str, Any]]) -> str:
    """Tables: the nine cells with the default objective, all objectives that were tried, and the best fixed method."""
    lines = [
        "# The nine cells",
        "",
        f"Objective `{OBJECTIVE}`: the square root of the divergence from the unpruned model at the first answer",
        f"token, mean over {PICTURES} pictures or clips of the validation split. Accuracies are those of the committed",
        "tables, in %.",
        "",
        "| task | budget | methods | Spearman | picked | its accuracy | best | its accuracy | within its interval |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for cell in cells:
        found = cell["objectives"][OBJECTIVE]
        inside = found["picked_accuracy"] >= cell["best_accuracy"] - cell["best_half"]
        lines.append(
            f"| {cell['task']} | {cell['budget']} | {cell['methods']} | {found['spearman']:.2f} | {found['picked']}"
            f" | {100 * found['picked_accuracy']:.1f} | {cell['best']}"
            f" | {100 * cell['best_accuracy']:.1f} ± {100 * cell['best_half']:.1f} | {'yes' if inside else '**no**'} |"
        )
    single = {
        method: statistics.fmean(cell["points"][method]["accuracy"] for cell in cells)
        for method in cells[0]["points"]
        if all(method in cell["points"] for cell in cells)
    }
    order = sorted(single, key=lambda method: -single[method])
    picked = statistics.fmean(cell["objectives"][OBJECTIVE]["picked_accuracy"] for cell in cells)
    best = statistics.fmean(cell["best_accuracy"] for cell in cells)
    lines += [
        "",
        f"Mean accuracy over these {len(cells)} cells: what was picked {100 * picked:.1f} %; the best method of each"
        f" cell {100 * best:.1f} %; the best single method for all cells, `{order[0]}`,"
        f" {100 * single[order[0]]:.1f} %; then",
        ", ".join(f"`{method}` {100 * single[method]:.1f} %" for method in order[1:5]) + ".",
        "",
        f"All {len(cells[0]['objectives'])} objectives that were tried, Spearman's rank correlation (and points below"
        " the best method of the cell):",
        "",
        "| objective | " + " | ".join(f"{cell['task']}, {cell['budget'].split()[1]}" for cell in cells) + " |",
        "|---|" + "---|" * len(cells),
    ]
    for name in cells[0]["objectives"]:
        values = [
            f"{cell['objectives'][name]['spearman']:.2f}"
            f" ({100 * (cell['best_accuracy'] - cell['objectives'][name]['picked_accuracy']):.1f})"
            for cell in cells
        ]
        lines.append(f"| {name} | " + " | ".join(values) + " |")
    return "\n".join(lines) + "\n"


def draw(cells: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw a scatter plot per cell: the objective against the accuracy of the table."""
    panels = []
    kinds = {"picked": (COLOURS[1], MARKERS[7]), "random": (GREY, MARKERS[6]), "other": (COLOURS[0], MARKERS[0])}
    for cell in cells:
        found = cell["objectives"][OBJECTIVE]
        rows = [
            {
                "objective": point[OBJECTIVE],
                "accuracy": 100 * point["accuracy"],
                "kind": "picked" if method == found["picked"] else "random" if method.startswith("random") else "other",
            }
            for method, point in cell["points"].items()
        ]
        looks = {
            channel: {"field": "kind", "scale": {"domain": list(kinds), "range": values}, "legend": None}
            for channel, values in (
                ("color", [colour for colour, _ in kinds.values()]),
                ("shape", [marker for _, marker in kinds.values()]),
                ("size", [110, 30, 30]),
            )
        }
        title = f"{cell['task']}, {cell['budget']}: {found['spearman']:.2f}, {found['picked']}"
        axis = {"type": "quantitative", "scale": {"zero": False, "padding": 6}}
        x = {"field": "objective", "title": "root of the divergence, no labels", **axis}
        y = {"field": "accuracy", "title": "accuracy of the table, %", **axis}
        points = layer("point", {"x": x, "y": y, **looks}, rows, filled=True, opacity=1)
        panels.append({**points, "width": 260, "height": 170, "title": {"text": title, "fontSize": 11}})
    notes = ["Star: picked. Crosses: random. The number is Spearman's rank correlation."]
    save(figure({"concat": panels, "columns": len(SHARES)}, notes), path, [path.suffix])


def main() -> None:
    """Measure what is missing and print the cells."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results/tuning/cells.json")
    parser.add_argument("--task", action="append", choices=list(CELLS))
    arguments = parser.parse_args()
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    rows = arguments.output.with_suffix(".jsonl")
    for task in arguments.task or CELLS:
        measure(task, rows, read(rows))
    cells = summarise(read(rows))
    arguments.output.write_text(json.dumps(cells, indent=1) + "\n", encoding="utf-8")
    text = markdown(cells)
    arguments.output.with_suffix(".md").write_text(text, encoding="utf-8")
    draw(cells, arguments.output.with_suffix(".png"))
    print(text)


if __name__ == "__main__":
    main()
