"""The time that the engine itself takes, in microseconds (`python benchmarks/engine.py`, prints markdown).

The model has 32 very small layers, so that the work of the host dominates. Compared are the unpruned model, the engine
when it drops nothing, and the engine when it drops tokens. Rounds are paired, each in an order of its own. Last comes
the time that a `using` block takes beside the calls inside it.
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
from tokenprune.core.call_arguments import cache_name, returned_cache
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
    """Microseconds of the prefill, and the median of the decode steps."""
    start = time.perf_counter()
    output = model(**inputs, use_cache=True, logits_to_keep=1)
    prefill = time.perf_counter() - start
    mask, steps = inputs["attention_mask"], []
    for _ in range(STEPS):
        mask = torch.cat([mask, mask.new_ones(mask.shape[0], 1)], dim=1)
        step_inputs = {"input_ids": inputs["input_ids"][:, -1:], "attention_mask": mask}
        start = time.perf_counter()
        output = model(**step_inputs, **{cache_name(model.forward): returned_cache(output)}, use_cache=True)
        steps.append(time.perf_counter() - start)
    return prefill * 1e6, statistics.median(steps) * 1e6


@torch.no_grad()
def opening(model: Any, inputs: dict[str, torch.Tensor], budgets: range) -> list[float]:
    """Microseconds that the begin and the end of a `using` block take, for each budget, in a run of their own twice.

    Returns:
        First the times with budgets that are new to the run, then those with the same budgets again.
    """
    method, found = tp.load_method("random"), []
    with tp.apply(model, None) as run:
        for tokens in [*budgets, *budgets]:
            block = run.using(method, average_tokens=tokens)
            start = time.perf_counter()
            block.__enter__()
            opened = time.perf_counter() - start
            model(**inputs, logits_to_keep=1)  # a block without a call is an error
            start = time.perf_counter()
            block.__exit__(None, None, None)
            found.append(1e6 * (opened + time.perf_counter() - start))
    return found


def main() -> None:
    """Print the table."""
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
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in methods}
        for number in range(ROUNDS + 1):
            order = list(methods.items())
            random.Random(number).shuffle(order)
            for name, tokens in order:
                method = None if tokens is None else tp.load_method("random", average_tokens=tokens)
                with nullcontext() if method is None else tp.apply(model, method):
                    measured = microseconds(model, inputs)
                if number:  # round 0 warms up
                    times[name].append(measured)
        base = [step for _, step in times["untouched"]]
        for name, rounds in times.items():
            prefill, step = (Spread.of(list(column)) for column in zip(*rounds, strict=True))
            extra = Spread.of([own - unpruned for (_, own), unpruned in zip(rounds, base, strict=True)])
            kind = "none" if attention == "sdpa" and len(set(texts)) == 1 else "4-D"
            columns = [f"{value.median:.0f} ({value.low:.0f}-{value.high:.0f})" for value in (prefill, step, extra)]
            print(f"| {attention} | {kind} | {name} | " + " | ".join(columns) + " |")
    budgets = range(4, 36)
    found = opening(model, inputs, budgets)
    new, known = (Spread.of(part) for part in (found[: len(budgets)], found[len(budgets) :]))
    print(
        f"\nA `using` block takes {known.median:.0f} ({known.low:.0f}-{known.high:.0f}) with a method and budget that"
        f" the run knows, and {new.median:.0f} ({new.low:.0f}-{new.high:.0f}) with a new budget."
    )


if __name__ == "__main__":
    main()
