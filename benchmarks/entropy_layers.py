"""At which layer, and of which states, does the matrix entropy choose the right tokens? A heat map per model.

Every cell is the share of 32 pictures of the validation split for which the pruned model's first answer token is the
unpruned model's; no label is read. Random pruning at the same layer stands below. Above the map is the entropy along
the whole visual path: of the states that leave the layers of the vision tower (T0, T1 ...), and of those that enter the
decoder layers, from layer 0, which the projector feeds, on.

    python benchmarks/entropy_layers.py --output benchmarks/results/entropy-layers

The budget of the pictures is a layer average, so a later layer keeps fewer tokens; that of the clips is a share kept,
because a low layer average leaves the late layers of an eight-layer model no room.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import torch

from tokenprune.adapters import adapter_for
from tokenprune.budgets.base import Budget
from tokenprune.budgets.keep import KeepRatio
from tokenprune.budgets.label import budget_label
from tokenprune.budgets.layer_average import LayerAverage
from tokenprune.config import Method
from tokenprune.drawing import vega
from tokenprune.drawing.palette import COLOURS
from tokenprune.engine import measure_entropy
from tokenprune.engine.trials.calibrate import why_unmet
from tokenprune.engine.trials.fidelity import Fidelity, UnprunedBatch
from tokenprune.models.base import ModelSpec
from tokenprune.selectors.path_drop import find_path_drop
from tokenprune.tasks.base import Task
from tokenprune_embedded.models import Clips, Digits
from tokenprune_embedded.tasks.digits import Digits as DigitsTask
from tokenprune_embedded.tasks.easy_vqa import EasyVQA
from tokenprune_embedded.tasks.moving_digits import MovingDigits

PICTURES, BATCH, CURVES = 32, 8, 16
WIDTH = 44  # of a column, in pixels
ENTROPY = {f"{source}": {"name": "matrix_entropy", "source": source} for source in ("query", "key", "value", "hidden")}
ROWS: dict[str, dict[str, Any]] = {
    **ENTROPY,
    "hidden, final norm": {**ENTROPY["hidden"], "final_norm": True},
    "random": {"name": "random"},
}
#: Name -> model, task, budget, the last layer of the map.
MAPS: dict[str, tuple[ModelSpec, Task, Budget, int]] = {
    "digits": (Digits(), DigitsTask(), LayerAverage(ratio=0.3334), 9),
    "easy-vqa": (Digits(), EasyVQA(), LayerAverage(ratio=0.3334), 9),
    "clips": (Clips(), MovingDigits(), KeepRatio(ratio=0.112), 7),
}


@torch.no_grad()
def heat_map(model: ModelSpec, task: Task, budget: Budget, last: int) -> dict[str, Any]:
    """Entropy curve, and agreement and divergence per row and layer."""
    loaded = model.load()
    adapter = adapter_for(loaded.model)
    samples = task.calibration(PICTURES)
    curves = measure_entropy(loaded.model, [loaded.encode([sample]) for sample in samples[:CURVES]], cache=False)
    layers = list(range(1, min(last, adapter.num_layers - 1) + 1))
    first = loaded.encode(samples[:BATCH])
    layers = [layer for layer in layers if why_unmet(adapter, budget, [first], (layer,)) is None]
    parts: dict[tuple[str, int], list[Fidelity]] = {}
    for start in range(0, PICTURES, BATCH):
        inputs = loaded.encode(samples[start : start + BATCH])
        unpruned = UnprunedBatch(adapter, inputs, layers, sample_ids=range(start, start + BATCH))
        for name, scorer in ROWS.items():
            for layer in layers:
                method = Method(
                    layers={"name": "fixed", "layers": [layer]},
                    pruner={"name": "topk", "scorer": scorer},
                    budget=budget,
                )
                parts.setdefault((name, layer), []).append(unpruned.fidelity(method, [layer]))
        print(f"{loaded.name}, {type(task).__name__}: {start + BATCH} of {PICTURES} pictures", flush=True)
    found = {key: Fidelity.cat(value) for key, value in parts.items()}
    return {
        "model": loaded.name,
        "task": type(task).__name__,
        "budget": budget.model_dump(exclude_none=True),
        "tower": [statistics.fmean(values) for values in zip(*curves.tower, strict=True)],
        "entropy": curves.mean,
        "drop": find_path_drop(curves).sentence,
        "layers": layers,
        "agreement": {row: [float(found[row, layer].agreement.mean()) for layer in layers] for row in ROWS},
        "divergence": {row: [float(found[row, layer].divergence.mean()) for layer in layers] for row in ROWS},
        "average": [float(found["random", layer].average.mean()) for layer in layers],
    }


def draw(data: dict[str, Any], budget: Budget, path: Path) -> None:
    """Draw the curve above the map, on the same axis."""
    layers, rows = data["layers"], list(data["agreement"])
    tower = [f"T{layer}" for layer in range(len(data["tower"]))]
    points = [*tower, *map(str, range(layers[-1] + 1))]
    width = WIDTH * len(points)
    place = {"type": "band", "domain": points, "padding": 0}
    x = {"field": "layer", "type": "ordinal", "scale": place, "axis": {"labelAngle": 0}}
    entropy = zip(points, data["tower"] + data["entropy"], strict=False)
    curve = [{"layer": point, "entropy": value} for point, value in entropy]
    y = {"field": "entropy", "type": "quantitative", "title": ["entropy of", "visual states"], "scale": {"zero": False}}
    title = "leaving layer of the vision tower | entering layer of the language model"
    line = vega.layer("line", {"x": {**x, "title": title}, "y": y}, curve, point=True, color=COLOURS[0])
    edge = {"x": {"value": WIDTH * len(tower)}}
    boundary = vega.layer("rule", edge, [{}], color=vega.SOFT, strokeWidth=1.5)
    cells = [
        {"row": row, "layer": str(at), "agreement": value}
        for row in rows
        for at, value in zip(layers, data["agreement"][row], strict=True)
    ]
    scale = {"domain": [0, 1], "scheme": "cividis"}
    colour = {"field": "agreement", "type": "quantitative", "scale": scale, "legend": None}
    ink = {"condition": {"test": "datum.agreement > 0.55", "value": "black"}, "value": "white"}
    place = {
        "x": {**x, "title": "pruned before layer"},
        "y": {"field": "row", "type": "ordinal", "scale": {"domain": rows}, "title": None},
    }
    number = {"text": {"field": "agreement", "format": ".2f"}, "color": ink}
    above = {"width": width, "height": 120, "layer": [boundary, line]}
    parts = [
        vega.layer("rect", {**place, "color": colour}, cells),
        vega.layer("text", place | number, cells, fontSize=12),
    ]
    below = {"width": width, "height": 34 * len(rows), "layer": parts}
    note = f"{data['task']}: agreement with the unpruned model ({budget_label(budget)})"
    drop = data["drop"][:1].upper() + data["drop"][1:]
    vega.save(vega.figure({"vconcat": [above, below]}, [note, drop]), path, [path.suffix])


def main() -> None:
    """Measure the maps that are not in the folder, and draw all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/entropy-layers"))
    folder = parser.parse_args().output
    folder.mkdir(parents=True, exist_ok=True)
    for name, settings in MAPS.items():
        path = folder / f"{name}.json"
        if not path.is_file():
            path.write_text(json.dumps(heat_map(*settings), indent=1) + "\n", encoding="utf-8")
        data = json.loads(path.read_text(encoding="utf-8"))
        draw(data, settings[2], path.with_suffix(".png"))
        print(f"{name}: {data['drop']}")
        for part, values in (("leaving tower layer", data["tower"]), ("entering layer", data["entropy"][:11])):
            print(f"  {part:20}" + " ".join(f"{value:.2f}" for value in values))
        for row, values in data["agreement"].items():
            print(f"  {row:20}" + " ".join(f"{value:.2f}" for value in values))


if __name__ == "__main__":
    main()
