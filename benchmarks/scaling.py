"""Time and memory of scoring and selecting, by the number of visual tokens and by the batch size.

    python benchmarks/scaling.py [--device cuda] [--dtype float32] [--json FILE] [--plot FILE.png] [--quick]

The states are random, in the shape of LLaVA-1.5-7B (32 heads of 128, hidden size 4096). A call does what pruning adds
to a prefill: it scores on a new context and selects a quarter of the tokens. Memory is the peak of a call without its
inputs: on CUDA by the allocator, on the CPU the live outputs of torch operations (not memory inside a kernel).
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tokenprune.measure.memory import peak_bytes
from tokenprune.ops.topk import topk_by_group
from tokenprune.scorers.base import Scorer
from tokenprune.scorers.fastv import FastV
from tokenprune.scorers.matrix_entropy import MatrixEntropy
from tokenprune.scorers.norm import Norm
from tokenprune.scorers.random import Random
from tokenprune.signals.context import PruneContext
from tokenprune.testing import make_context

TOKENS = (144, 576, 1152, 2304, 4608, 9216, 16384)
BATCHES = (1, 2, 4, 8)
HEADS, DIM = 32, 128
SCORERS: dict[str, Scorer] = {
    "matrix_entropy": MatrixEntropy(),
    "matrix_entropy, none": MatrixEntropy(normalization="none"),
    "norm": Norm(),
    "random": Random(),
    "fastv": FastV(),
}


def context(
    batch: int,
    tokens: int,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    heads: int = HEADS,
    dim: int = DIM,
) -> PruneContext:
    """A context of random states: each sample is one image and one text token."""
    rows = tokens + 1
    query, key = (torch.randn(batch, rows, heads, dim, device=device, dtype=dtype) for _ in range(2))
    hidden = torch.empty(batch, rows, heads * dim, device=device, dtype=dtype)
    visual = (torch.arange(rows, device=device) < tokens).expand(batch, -1)
    return make_context(
        hidden, visual, sizes=[[tokens]] * batch, query=query, key=key, layer=2, num_layers=32, num_heads=heads
    )


def fresh(ctx: PruneContext) -> PruneContext:
    """A copy of the context without cached values, because gathering the visual rows is part of the cost."""
    return PruneContext(**{name: getattr(ctx, name) for name in PruneContext.__dataclass_fields__})


def prune(scorer: Scorer, ctx: PruneContext) -> Tensor:
    """The call that is measured: score the tokens, then keep a quarter."""
    batch, tokens = ctx.visual_mask.shape
    quotas = torch.full((batch, 1), tokens // 4, device=ctx.visual_mask.device)
    return topk_by_group(scorer.score(fresh(ctx)), ctx.groups, quotas)


def milliseconds(call: Callable[[], object], device: str, rounds: int) -> float:
    """Median milliseconds of a call, including the work on the device."""
    times = []
    for number in range(rounds + 1):
        if device == "cuda":
            torch.cuda.synchronize()
        begin = time.perf_counter()
        call()
        if device == "cuda":
            torch.cuda.synchronize()
        if number:  # the first one warms up
            times.append(1e3 * (time.perf_counter() - begin))
    return statistics.median(times)


def slope(points: list[tuple[int, float]]) -> float:
    """Least-squares slope of the logarithms: 1 means linear, 2 quadratic."""
    xs, ys = ([math.log(value) for value in column] for column in zip(*points, strict=True))
    return statistics.linear_regression(xs, ys).slope


def sweep(name: str, sizes: list[tuple[int, int]], args: argparse.Namespace) -> list[dict[str, Any]]:
    """One measurement per (batch, tokens)."""
    measurements = []
    for batch, tokens in sizes:
        ctx = context(batch, tokens, args.device, getattr(torch, args.dtype))

        def call(ctx: PruneContext = ctx) -> Tensor:
            return prune(SCORERS[name], ctx)

        ms = milliseconds(call, args.device, args.rounds)
        measurements.append(
            {
                "scorer": name,
                "batch": batch,
                "tokens": tokens,
                "ms": ms,
                "mib": peak_bytes(call, torch.device(args.device)) / 2**20,
            }
        )
    return measurements


def table(rows: dict[str, list[dict[str, Any]]], axis: str) -> None:
    """Print ms / MiB per size and the slopes as Markdown."""
    sizes = [row[axis] for row in next(iter(rows.values()))]
    print(f"\n| ms / MiB at {axis} = | " + " | ".join(map(str, sizes)) + " | Slope of time | of memory |")
    print("|---" * (len(sizes) + 3) + "|")
    for name, row in rows.items():
        columns = " | ".join(f"{size['ms']:.2f} / {size['mib']:.1f}" for size in row)
        slopes = [slope([(size[axis], size[kind]) for size in large(row, axis)]) for kind in ("ms", "mib")]
        print(f"| {name} | {columns} | {slopes[0]:.2f} | {slopes[1]:.2f} |", flush=True)


def large(row: list[dict[str, Any]], axis: str) -> list[dict[str, Any]]:
    """The sizes that a slope is fitted to. At small sizes constant costs would hide quadratic growth."""
    return row[-4:] if axis == "tokens" else row


def plot(rows: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Draw time and memory by the number of tokens, in logarithmic axes, with a linear slope for comparison."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    for axis, kind, title in zip(axes, ("ms", "mib"), ("Median time, ms", "Peak extra memory, MiB"), strict=True):
        for name, row in rows.items():
            axis.loglog([size["tokens"] for size in row], [size[kind] for size in row], marker="o", label=name)
        ends = [next(iter(rows.values()))[i]["tokens"] for i in (0, -1)]
        start = min(row[0][kind] for row in rows.values()) / 2
        axis.loglog(ends, [start, start * ends[1] / ends[0]], "k:", label="linear")
        axis.set(xlabel="Visual tokens, batch 1", title=title)
        axis.grid(visible=True, which="both", alpha=0.2)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(rows) + 1)
    figure.savefig(path, dpi=150)


def main() -> None:
    """Print the tables; write the JSON file and the picture if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--quick", action="store_true", help="small sizes, one round")
    args = parser.parse_args()
    torch.manual_seed(0)
    if args.quick:
        args.rounds = 1
    tokens, batches = (TOKENS[:4], BATCHES[:2]) if args.quick else (TOKENS, BATCHES)
    device = torch.cuda.get_device_name() if args.device == "cuda" else "cpu"
    where = f"torch {torch.__version__}, {torch.get_num_threads()} threads, {device}, {args.dtype}"
    print(f"{where}; median of {args.rounds}; slopes: log-log, over tokens of the four largest sizes")
    by_tokens = {name: sweep(name, [(1, count) for count in tokens], args) for name in SCORERS}
    table(by_tokens, "tokens")
    by_batch = {name: sweep(name, [(batch, 576) for batch in batches], args) for name in SCORERS}
    table(by_batch, "batch")
    steepest = {
        name: slope([(size["tokens"], size["mib"]) for size in large(row, "tokens")]) for name, row in by_tokens.items()
    }
    quadratic = [name for name, value in steepest.items() if value > 1.2]
    print("\nMemory grows faster than linearly: " + (", ".join(quadratic) or "for no scorer"))
    if args.json:
        result = {"where": where, "tokens": by_tokens, "batch": by_batch, "memory_slope": steepest}
        args.json.write_text(json.dumps(result, indent=2) + "\n")
    if args.plot:
        plot(by_tokens, args.plot)


if __name__ == "__main__":
    main()
