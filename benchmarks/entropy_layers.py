"""At which layer, and of which states, does the matrix entropy choose the right tokens? A heat map per model.

Every cell is the share of 32 pictures of the training split for which the pruned model's first answer token is the
unpruned model's; no label is read. Random pruning at the same layer stands below. Above the map is the entropy curve of
the hidden states, with the sharpest drop and the low plateau.

    python benchmarks/entropy_layers.py --output benchmarks/results/entropy-layers

The budget of the pictures is a layer average, so a later layer keeps fewer tokens; that of the clips is a share kept,
because a low layer average leaves the late layers of an eight-layer model no room.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib
import torch

from tokenprune.adapters import adapter_for
from tokenprune.budgets.base import Budget
from tokenprune.budgets.keep import KeepRatio
from tokenprune.budgets.layer_average import LayerAverage
from tokenprune.budgets.slug import slug
from tokenprune.config import Method
from tokenprune.engine import measure_entropy
from tokenprune.engine.trials.calibrate import why_unmet
from tokenprune.engine.trials.fidelity import Fidelity, UnprunedBatch
from tokenprune.models.base import ModelSpec
from tokenprune.tasks.base import Task
from tokenprune_embedded.models import Clips, Digits
from tokenprune_embedded.tasks.digits import Digits as DigitsTask
from tokenprune_embedded.tasks.easy_vqa import EasyVQA
from tokenprune_embedded.tasks.moving_digits import MovingDigits

matplotlib.use("Agg")
import matplotlib.pyplot as plt

PICTURES, BATCH, CURVES = 32, 8, 16
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
        "entropy": curves.mean,
        "layers": layers,
        "agreement": {row: [float(found[row, layer].agreement.mean()) for layer in layers] for row in ROWS},
        "divergence": {row: [float(found[row, layer].divergence.mean()) for layer in layers] for row in ROWS},
        "average": [float(found["random", layer].average.mean()) for layer in layers],
    }


def draw(data: dict[str, Any], budget: Budget, path: Path) -> None:
    """The curve above the map."""
    layers, rows = data["layers"], list(data["agreement"])
    figure, (above, below) = plt.subplots(
        2, 1, figsize=(1.6 + 0.75 * len(layers), 5.4), height_ratios=[1, 2], layout="constrained"
    )
    curve = data["entropy"][: layers[-1] + 2]
    above.plot(range(len(curve)), curve, marker="o", color="#0072b2")
    above.set_ylabel("entropy of\nhidden states")
    above.set_xlabel("input of layer")
    above.set_xlim(layers[0] - 0.5, layers[-1] + 0.5)
    above.set_xticks(layers)
    above.spines[["top", "right"]].set_visible(False)
    values = [data["agreement"][row] for row in rows]
    below.imshow(values, cmap="cividis", vmin=0, vmax=1, aspect="auto")
    for y, line in enumerate(values):
        for x, value in enumerate(line):
            below.text(x, y, f"{value:.2f}", ha="center", va="center", color="black" if value > 0.55 else "white")
    below.set_xticks(range(len(layers)), layers)
    below.set_yticks(range(len(rows)), rows)
    below.set_xlabel("pruned before layer")
    figure.suptitle(f"{data['task']}: agreement with the unpruned model ({slug(budget)})", fontsize=10)
    figure.savefig(path, dpi=150)
    plt.close(figure)


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
        print(f"{name}: input of layer " + " ".join(f"{value:.2f}" for value in data["entropy"][:11]))
        for row, values in data["agreement"].items():
            print(f"  {row:20}" + " ".join(f"{value:.2f}" for value in values))


if __name__ == "__main__":
    main()
