"""Does the label-free objective rank methods as their accuracy does? The nine cells of docs/tuning.md.

For every task and three shares of tokens, each method of the finished cells of ``make tables`` at equal layer averages
runs on samples of the validation split next to the unpruned model; no label is read. The mean of each objective over
the samples is then compared with the accuracy of the cell: Spearman's rank correlation over the methods, and the
accuracy of the method with the best objective. Methods have the layers, and the pruner, that they had in the cell.

    python benchmarks/tuning_cells.py --output benchmarks/results/tuning/cells.json

Measurements are appended to ``results/tuning-cells.jsonl``, and are not made again.
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
import yaml
from tables import PLAN, ROOT, Cell, cells

from tokenprune import ExperimentConfig
from tokenprune.adapters import adapter_for
from tokenprune.config import Method
from tokenprune.core.references import ORACLE
from tokenprune.drawing.palette import COLOURS, GREY, MARKERS
from tokenprune.drawing.vega import figure, layer, save
from tokenprune.engine.trials.fidelity import Fidelity, UnprunedBatch
from tokenprune.experiment.series import Series
from tokenprune.selectors.fixed import Fixed

#: The shares of the nine cells, of those of tables.yaml.
SHARES = (0.3334, 0.1112, 0.05)
MEASURED = ROOT / "results" / "tuning-cells.jsonl"
OBJECTIVE = "root_divergence"
SAMPLES = 64
BATCH = 8


def nine() -> list[Cell]:
    """The cells that are finished."""
    found = cells(yaml.safe_load(PLAN.read_text(encoding="utf-8")))
    wanted = [cell for cell in found if cell.axis == "average" and cell.share in SHARES and cell.finished]
    return sorted(wanted, key=lambda cell: (list(cell.plan["tasks"]).index(cell.task), -cell.share))


def series_of(config: ExperimentConfig) -> Iterator[Series]:
    """The methods of a cell, random ones with their first seed only."""
    seen = {ORACLE}
    for item in config.series():
        if item.method is not None and item.method_name not in seen:
            seen.add(item.method_name)
            yield item


def method_of(item: Series, choice: dict[str, Any]) -> Method:
    """A method as it ran in the cell."""
    assert item.method is not None
    method = item.method.model_copy(update={"layers": Fixed(layers=tuple(choice["layers"]))})
    if "pruner" in choice:  # entropyprune took another one
        stated = method.model_dump(mode="json") | {"pruner": choice["pruner"]}
        method = Method.from_dict(stated)
    return method


def measure(cell: Cell, path: Path, done: dict[tuple[str, str, int], dict[str, Any]]) -> None:
    """Measure what is missing of one cell, and append it to the file."""
    config = ExperimentConfig.from_yaml(cell.folder / "config.yaml")
    choices = json.loads((cell.folder / "choices.json").read_text(encoding="utf-8"))
    methods = {item.method_name: method_of(item, choices[item.key]) for item in series_of(config)}
    numbers = range(SAMPLES // BATCH)
    if all((cell.name, name, number) in done for name in methods for number in numbers):
        return
    loaded = config.model.load()
    adapter = adapter_for(loaded.model)
    samples = config.task.calibration(SAMPLES)
    with path.open("a", encoding="utf-8") as file:
        for number in numbers:
            missing = [name for name in methods if (cell.name, name, number) not in done]
            if not missing:
                continue
            part = slice(number * BATCH, (number + 1) * BATCH)
            start = time.perf_counter()
            firsts = {methods[name].layers.layers[0] for name in missing}
            unpruned = UnprunedBatch(adapter, loaded.encode(samples[part]), firsts, sample_ids=range(SAMPLES)[part])
            for name in missing:
                found = unpruned.fidelity(methods[name], methods[name].layers.layers).to_lists()
                row = {"cell": cell.name, "method": name, "batch": number}
                file.write(json.dumps(row | found) + "\n")
                file.flush()
            print(
                f"{cell.name} batch {number}: {len(missing)} methods, {time.perf_counter() - start:.1f} s", flush=True
            )


def read(path: Path) -> dict[tuple[str, str, int], dict[str, Any]]:
    """What was measured: (cell, method, batch) -> row."""
    if not path.is_file():
        return {}
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
    return {(row["cell"], row["method"], row["batch"]): row for row in rows}


def accuracies(cell: Cell) -> dict[str, tuple[float, float, float]]:
    """Method -> accuracy and the ends of its interval in the committed cell."""
    rows = json.loads((cell.folder / "summary.json").read_text(encoding="utf-8"))
    found = {row["method"]: row["accuracy"] for row in rows}
    return {method: (accuracy["mean"], accuracy["low"], accuracy["high"]) for method, accuracy in found.items()}


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
    found = []
    for own in nine():
        table = accuracies(own)
        parts: dict[str, list[Fidelity]] = {}
        for (name, method, _), row in sorted(done.items()):
            if name == own.name:
                parts.setdefault(method, []).append(Fidelity.from_lists(row))
        losses = {method: objectives(Fidelity.cat(rows)) for method, rows in parts.items()}
        both = {method: table[method] for method in losses if method in table}
        if len(both) < 3:
            continue
        best = max(both, key=lambda method: both[method][0])
        shown = f"{100 * own.share:.3g} %"
        cell: dict[str, Any] = {"task": own.task, "budget": shown, "methods": len(both), "best": best}
        cell["best_accuracy"], cell["best_low"], cell["best_high"] = both[best]
        cell["objectives"] = {}
        for name in next(iter(losses.values())):
            picked = min(both, key=lambda method, name=name: losses[method][name])  # type: ignore[misc]
            cell["objectives"][name] = {
                "spearman": spearman([-losses[method][name] for method in both], [both[m][0] for m in both]),
                "picked": picked,
                "picked_accuracy": both[picked][0],
            }
        cell["points"] = {method: {**losses[method], "accuracy": both[method][0]} for method in both}
        found.append(cell)
    return found


def markdown(found: Sequence[dict[str, Any]]) -> str:
    """Tables: the nine cells with the default objective, all objectives that were tried, and the best fixed method."""
    lines = [
        "# The nine cells",
        "",
        f"Objective `{OBJECTIVE}`: the square root of the divergence from the unpruned model at the first answer",
        f"token, mean over {SAMPLES} pictures or clips of the validation split. Accuracies, in %, are those of the",
        "committed cells at equal layer averages.",
        "",
        "| task | tokens | methods | Spearman | picked | its accuracy | best | its accuracy | within its interval |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for cell in found:
        own = cell["objectives"][OBJECTIVE]
        inside = own["picked_accuracy"] >= cell["best_low"]
        best = " [{:.1f}, {:.1f}]".format(*(100 * cell[end] for end in ("best_low", "best_high")))
        lines.append(
            f"| {cell['task']} | {cell['budget']} | {cell['methods']} | {own['spearman']:.2f} | {own['picked']}"
            f" | {100 * own['picked_accuracy']:.1f} | {cell['best']}"
            f" | {100 * cell['best_accuracy']:.1f}{best} | {'yes' if inside else '**no**'} |"
        )
    single = {
        method: statistics.fmean(cell["points"][method]["accuracy"] for cell in found)
        for method in found[0]["points"]
        if all(method in cell["points"] for cell in found)
    }
    order = sorted(single, key=lambda method: -single[method])
    picked = statistics.fmean(cell["objectives"][OBJECTIVE]["picked_accuracy"] for cell in found)
    highest = statistics.fmean(cell["best_accuracy"] for cell in found)
    lines += [
        "",
        f"Mean accuracy over these {len(found)} cells: what was picked {100 * picked:.1f} %; the best method of each"
        f" cell {100 * highest:.1f} %; the best single method for all cells, `{order[0]}`,"
        f" {100 * single[order[0]]:.1f} %; then",
        ", ".join(f"`{method}` {100 * single[method]:.1f} %" for method in order[1:5]) + ".",
        "",
        f"All {len(found[0]['objectives'])} objectives that were tried, Spearman's rank correlation (and points below"
        " the best method of the cell):",
        "",
        "| objective | " + " | ".join(f"{cell['task']}, {cell['budget']}" for cell in found) + " |",
        "|---|" + "---|" * len(found),
    ]
    for name in found[0]["objectives"]:
        values = [
            f"{cell['objectives'][name]['spearman']:.2f}"
            f" ({100 * (cell['best_accuracy'] - cell['objectives'][name]['picked_accuracy']):.1f})"
            for cell in found
        ]
        lines.append(f"| {name} | " + " | ".join(values) + " |")
    return "\n".join(lines) + "\n"


def draw(found: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw a scatter plot per cell: the objective against the accuracy of the table."""
    panels = []
    kinds = {"picked": (COLOURS[1], MARKERS[7]), "random": (GREY, MARKERS[6]), "other": (COLOURS[0], MARKERS[0])}
    for cell in found:
        own = cell["objectives"][OBJECTIVE]
        rows = [
            {
                "objective": point[OBJECTIVE],
                "accuracy": 100 * point["accuracy"],
                "kind": "picked" if method == own["picked"] else "random" if method.startswith("random") else "other",
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
        title = f"{cell['task']}, {cell['budget']}: {own['spearman']:.2f}, {own['picked']}"
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
    parser.add_argument("--cell", action="append", choices=[cell.name for cell in nine()])
    arguments = parser.parse_args()
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    MEASURED.parent.mkdir(parents=True, exist_ok=True)
    for cell in nine():
        if not arguments.cell or cell.name in arguments.cell:
            measure(cell, MEASURED, read(MEASURED))
    found = summarise(read(MEASURED))
    if not found:
        raise SystemExit("no cell of `make tables` at equal layer averages is finished")
    arguments.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    text = markdown(found)
    arguments.output.with_suffix(".md").write_text(text, encoding="utf-8")
    draw(found, arguments.output.with_suffix(".png"))
    print(text)


if __name__ == "__main__":
    main()
