"""What the fingerprint of a model costs, and which changes of one weight it notices.

    python benchmarks/fingerprint.py > benchmarks/results/fingerprint.md

All weights are ones: neither time nor places depend on their values. `--device cuda` times them there.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import AutoModelForImageTextToText

from tokenprune.fingerprint import fingerprint
from tokenprune.fingerprint.sampling import places
from tokenprune.models.presets import preset

#: The weight whose changes are looked for: the down projection of Vicuna-7B.
ROWS, COLUMNS = 4096, 11008


def cut(name: str, layers: int, dtype: torch.dtype) -> nn.Module:
    """A preset with fewer decoder layers, on the device `meta`."""
    config = preset(name).config()
    config.text_config.num_hidden_layers = layers
    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(config, dtype=dtype).eval()


MODELS: list[tuple[str, Callable[[], Any]]] = [
    ("LLaVA around Qwen2-0.5B, float32", lambda: preset("llava-0.5b").build("meta")),
    ("LLaVA-1.5-7B with 4 of 32 layers, bfloat16", lambda: cut("llava-1.5-7b", 4, torch.bfloat16)),
    ("LLaVA-1.5-7B with 12 of 32 layers, bfloat16", lambda: cut("llava-1.5-7b", 12, torch.bfloat16)),
    ("one weight of 2 GiB, bfloat16", lambda: nn.Linear(2**15, 2**15, False, "meta", torch.bfloat16)),
]


def times(rounds: int, device: str) -> Iterator[str]:
    """The rows of the first table. On the CPU it is the thread's own time: other programs do not count."""
    clock = time.thread_time if device == "cpu" else time.perf_counter
    for name, build in MODELS:
        model = build().to_empty(device=device)
        weights = model.state_dict().values()
        for weight in weights:
            weight.fill_(1)  # memory that nobody wrote is no memory yet
        size = sum(weight.numel() * weight.element_size() for weight in weights) / 2**30
        fingerprint(model)  # pages and kernels are loaded
        found = []
        for _ in range(rounds):
            start = clock()
            assert fingerprint(model) is not None
            found.append(1000 * (clock() - start))
        middle = statistics.median(found)
        yield f"| {name} | {len(model.state_dict())} | {size:.2f} | {middle:.0f} | {middle / size:.0f} |"


def share(rng: np.random.Generator, count: float) -> Callable[[np.ndarray[Any, Any]], bool]:
    """A change of so many numbers anywhere: whether one of them is at one of the places."""
    total = ROWS * COLUMNS
    return lambda read: bool(np.isin(rng.choice(total, max(1, int(count * total)), replace=False), read).any())


def block(rng: np.random.Generator, rows: int, columns: int) -> Callable[[np.ndarray[Any, Any]], bool]:
    """A change of neighbouring rows and columns somewhere."""

    def noticed(read: np.ndarray[Any, Any]) -> bool:
        top, left = rng.integers(0, ROWS - rows + 1), rng.integers(0, COLUMNS - columns + 1)
        row, column = read // COLUMNS, read % COLUMNS
        return bool(((row >= top) & (row < top + rows) & (column >= left) & (column < left + columns)).any())

    return noticed


def detection(trials: int) -> Iterator[str]:
    """The rows of the second table."""
    rng = np.random.default_rng(0)
    changes = {
        "one number in 100, anywhere": share(rng, 0.01),
        "one number in 1,000, anywhere": share(rng, 0.001),
        "one number in 10,000, anywhere": share(rng, 0.0001),
        "one row": block(rng, 1, COLUMNS),
        "one column": block(rng, ROWS, 1),
        "4 columns": block(rng, ROWS, 4),
        "a block of 64 x 64": block(rng, 64, 64),
        "a block of 256 x 256": block(rng, 256, 256),
        "one number": block(rng, 1, 1),
    }
    for name, noticed in changes.items():
        found = sum(noticed(places(ROWS * COLUMNS, seed)) for seed in range(trials))
        yield f"| {name} | {100 * found / trials:.1f} |"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    where = torch.cuda.get_device_name() if options.device == "cuda" else f"CPU {platform.machine()}"
    threads = f"{torch.get_num_threads()} threads; time of the thread, median of {options.rounds}"
    print(f"torch {torch.__version__}, {where}, {threads}\n")
    print("| Model | weights and buffers | GiB | ms | ms per GiB |\n|---|---|---|---|---|")
    for row in times(options.rounds, options.device):
        print(row, flush=True)
    print(f"\nA change of one weight of {ROWS} x {COLUMNS} is noticed, in {options.trials} trials each:\n")
    print("| Change | noticed % |\n|---|---|")
    for row in detection(options.trials):
        print(row, flush=True)


if __name__ == "__main__":
    main()
