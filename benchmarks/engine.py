"""What the engine costs in microseconds (`python benchmarks/engine.py`, prints markdown).

A model of 32 layers that are almost nothing, so that what remains is the host's work: a step of the untouched model, of
the engine when nothing was dropped, and of the engine when tokens were. Rounds are paired, the order differs in each.
"""

from __future__ import annotations

import random
import statistics
import time
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch

import tokenprune as tp
from tokenprune.measure.latency import Spread
from tokenprune.models.presets import Preset, Request, preset

ROUNDS, STEPS = 15, 40


def small() -> Preset:
    """LLaVA-1.5-7B's 32 layers, 64 wide, and 36 visual tokens."""
    large = preset("llava-1.5-7b")
    numbers = dict(large.numbers)
    numbers["text_config"] = numbers["text_config"] | {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_attention_heads": 4,
    }
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2}
    numbers["vision_config"] = numbers["vision_config"] | {**tower, "image_size": 84}
    return replace(large, numbers=numbers)


@torch.no_grad()
def microseconds(model: Any, inputs: dict[str, torch.Tensor]) -> tuple[float, float]:
    """Of the prefill, and of a decode step in the median."""
    start = time.perf_counter()
    output = model(**inputs, use_cache=True, logits_to_keep=1)
    prefill = time.perf_counter() - start
    mask, steps = inputs["attention_mask"], []
    for _ in range(STEPS):
        mask = torch.cat([mask, mask.new_ones(mask.shape[0], 1)], dim=1)
        given = {"input_ids": inputs["input_ids"][:, -1:], "attention_mask": mask}
        start = time.perf_counter()
        output = model(**given, past_key_values=output.past_key_values, use_cache=True)
        steps.append(time.perf_counter() - start)
    return prefill * 1e6, statistics.median(steps) * 1e6


def main() -> None:
    torch.set_num_threads(1)
    print(
        f"32 layers, 64 wide, batch 2, {ROUNDS} rounds of {STEPS} steps, one thread; microseconds, median (quartiles)\n"
    )
    print(
        "| attention | mask | | prefill | decode step | more than untouched, per step |\n|---|---|---|---:|---:|---:|"
    )
    methods = {"untouched": None, "keep-all": 36, "36 -> 8 tokens": 10}
    for attention, texts in (("sdpa", (40, 40)), ("sdpa", (40, 30)), ("eager", (40, 40))):
        chosen = small()
        model = chosen.build(attention=attention)
        inputs = chosen.inputs([Request(text) for text in texts])
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in methods}
        for number in range(ROUNDS + 1):
            order = list(methods.items())
            random.Random(number).shuffle(order)
            for name, tokens in order:
                how = nullcontext() if tokens is None else tp.apply(model, tp.load_method("random", tokens=tokens))
                with how:
                    took = microseconds(model, inputs)
                if number:
                    found[name].append(took)
        base = [step for _, step in found["untouched"]]
        for name, times in found.items():
            prefill, step = (Spread.of(list(column)) for column in zip(*times, strict=True))
            more = Spread.of([mine - other for (_, mine), other in zip(times, base, strict=True)])
            kind = "none" if attention == "sdpa" and len(set(texts)) == 1 else "4-D"
            cells = [f"{value.median:.0f} ({value.low:.0f}-{value.high:.0f})" for value in (prefill, step, more)]
            print(f"| {attention} | {kind} | {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
