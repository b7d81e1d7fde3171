"""Decode steps on a static cache, compiled and not, pruned and not (`python benchmarks/static_decode.py`).

A decoder of 12 layers, 512 wide, reads one picture of 576, 2,025 or 8,100 visual tokens. All series are rounds of one
run: `tokenprune bench --cache static --compile` does the same with any model. A step that is compiled is one graph of
inductor. `bound` is the number of bytes that an unpruned step reads, divided by that of the pruned one: the weights of
the decoder and its head, and the KV cache. In float32 a step computes two FLOPs per number that it reads, so the bound
of the FLOPs is the same. Prints markdown, and
writes all measurements to `benchmarks/results/static/`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

from tokenprune.measure import bench_table
from tokenprune.measure.bench import BenchConfig, BenchModel, run_bench
from tokenprune.models.presets import Preset, preset
from tokenprune.output.lines import json_ready

FOLDER = Path(__file__).parent / "results" / "static"
#: Patches on a side of the picture.
SIDES = (24, 45, 90)
KEPT = (0.25, 0.11)


def small(side: int) -> Preset:
    """A decoder of 12 layers, 512 wide, and a picture of side x side visual tokens."""
    numbers = dict(preset("llava-1.5-7b").numbers)
    text = {"hidden_size": 512, "intermediate_size": 1376, "num_attention_heads": 8, "num_hidden_layers": 12}
    numbers["text_config"] = numbers["text_config"] | text | {"max_position_embeddings": 16384}
    tower = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2, "num_hidden_layers": 2}
    numbers["vision_config"] = numbers["vision_config"] | tower | {"image_size": 14 * side}
    numbers["image_seq_length"] = side * side
    picture = preset("llava-1.5-7b").picture
    return Preset(f"{side * side} visual tokens", "a small decoder", numbers, picture)


def measured(side: int, rounds: int) -> dict[str, Any]:
    """The bench of one picture size."""
    made = small(side)
    config = BenchConfig(
        methods=("divprune",),
        average_ratio=KEPT,
        cache="static",
        compile=True,
        decode=16,
        rounds=rounds,
        dtype="float32",
        device="cpu",
    )
    model = made.build("cpu", torch.float32, config.attention)
    loaded = BenchModel(model, made.name, lambda prompts: made.inputs(prompts, "cpu", torch.float32))
    return run_bench(config, loaded=loaded)


def table(result: dict[str, Any]) -> str:
    """The decode steps of one size; compared with the unpruned model run the same way, within rounds."""
    rows = result["batches"][0]["rows"]
    lines = [
        "| series | KV MiB | step ms (quartiles) | CPU ms | times faster | by CPU time | bound | of it, by CPU time |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        way, step = "compiled" if row.get("compiled") else "eager", row["step_ms"]
        share = f" {row['ratio']:.0%}" if "ratio" in row else ""
        lines.append(
            f"| {row['name']}{share}, {way} | {row['kv_bytes'] / 2**20:.1f}"
            f" | {step['median']:.1f} ({step['low']:.1f}-{step['high']:.1f}) | {row['step_cpu_ms']['median']:.1f}"
            f" | {1 / row['step_ratio']['median']:.2f} | {1 / row['step_cpu_ratio']['median']:.2f}"
            f" | {row['step_bound']:.2f} | {1 / row['step_cpu_ratio']['median'] / row['step_bound']:.0%} |"
        )
    return "\n".join([*lines, "", "  \n".join(bench_table.sentences(result))])


def main() -> None:
    """Measure all sizes, or those whose sides are given behind the number of rounds."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    FOLDER.mkdir(parents=True, exist_ok=True)
    for side in map(int, sys.argv[2:] or SIDES):
        result = measured(side, rounds)
        path = FOLDER / f"{side * side}.json"
        path.write_text(json.dumps(json_ready(result), indent=1, allow_nan=False) + "\n", encoding="utf-8")
        text = f"## {side * side} visual tokens\n\n{table(result)}\n"
        path.with_suffix(".md").write_text(text, encoding="utf-8")
        print(text, flush=True)


if __name__ == "__main__":
    main()
