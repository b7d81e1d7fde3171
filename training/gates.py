"""Check the embedded model against its gates on held-out pictures and print the figures as markdown.

Gates, per task: accuracy; every question type against always giving its most frequent answer; the asked digit against
the other visible ones; and separation: keeping the true foreground tokens must hold what random tokens lose.
Dropped tokens are *hidden* from layer ``--layer`` on by a mask (what pruning equals, see docs/architecture.md), so that
this check does not depend on the engine it is meant to serve.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from tokenprune.models.base import LoadedModel
from tokenprune.models.embedded import Digits as Embedded
from tokenprune.tasks.base import Sample, Task, first_word, foreground_tokens
from tokenprune.tasks.digits import Digits, scene
from tokenprune.tasks.easy_vqa import EasyVQA

KEEP = 16  # of 144 tokens: 11 %


class Hide:
    """Hides visual columns from all other tokens in the layers from ``layer`` on, while active."""

    def __init__(self, model: nn.Module, layer: int) -> None:
        self.layers = model.get_decoder().layers[layer:]  # type: ignore[operator]
        self.columns = torch.empty(0)  # bool [batch, prompt], true where hidden

    def __enter__(self) -> Hide:
        self.handles = [layer.register_forward_pre_hook(self._hook, with_kwargs=True) for layer in self.layers]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()

    def _hook(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        states = args[0] if args else kwargs["hidden_states"]
        past = kwargs["position_ids"][0, -1].item() if states.shape[1] == 1 else 0
        mask = kwargs.get("attention_mask")
        length, width = states.shape[1], self.columns.shape[1]
        total = mask.shape[-1] if mask is not None else max(width, int(past) + 1)
        lowest = torch.finfo(states.dtype).min
        if mask is None:
            seen = torch.ones(length, total, dtype=torch.bool).tril(total - length)[None, None]
        else:
            seen = mask if mask.dtype == torch.bool else mask == 0
        hidden = torch.zeros(states.shape[0], total, dtype=torch.bool)
        hidden[:, :width] = self.columns
        seen = seen & ~hidden[:, None, None, :]
        # a hidden row still needs one column to look at; nothing reads its output
        rows = ~seen.any(-1, keepdim=True)
        kwargs["attention_mask"] = torch.zeros(seen.shape, dtype=states.dtype).masked_fill(~(seen | rows), lowest)
        return args, kwargs


def answer(
    loaded: LoadedModel, samples: Sequence[Sample], keep: torch.Tensor | None, layer: int, batch: int
) -> list[str]:
    """Generated answers; ``keep`` is bool ``[samples, 144]`` or ``None`` for the unpruned model."""
    texts: list[str] = []
    token = loaded.model.config.image_token_id
    for start in range(0, len(samples), batch):
        inputs = loaded.encode(samples[start : start + batch])
        ids = inputs["input_ids"]
        with torch.no_grad(), Hide(loaded.model, layer if keep is not None else 10**6) as hide:
            if keep is not None:
                columns = torch.zeros_like(ids, dtype=torch.bool)
                columns[ids == token] = ~keep[start : start + batch].flatten()
                hide.columns = columns
            out = loaded.model.generate(**inputs, max_new_tokens=3, do_sample=False)
        texts += loaded.decode(out[:, ids.shape[1] :])
    return texts


def clustered(values: Sequence[float], groups: Sequence[str]) -> tuple[float, float]:
    """Mean and half-width of its 95 % interval; questions on one picture count as one draw."""
    data, total = np.asarray(values, dtype=float), len(values)
    sums: dict[str, float] = defaultdict(float)
    for value, group in zip(data - data.mean(), groups, strict=True):
        sums[group] += value
    clusters = len(sums)
    spread = sum(value**2 for value in sums.values()) * clusters / max(clusters - 1, 1)
    return float(data.mean()), float(1.96 * np.sqrt(spread) / total)


def by_type(samples: Sequence[Sample], right: Sequence[bool]) -> str:
    """The table of accuracies per question type."""
    lines = [
        "| type | questions | accuracy | always the most frequent | lead | gate (20) |",
        "|---|---|---|---|---|---|",
    ]
    for kind in dict.fromkeys(sample.type for sample in samples):
        chosen = [(s, r) for s, r in zip(samples, right, strict=True) if s.type == kind]
        mean, half = clustered([r for _, r in chosen], [s.group for s, _ in chosen])
        base = Counter(s.answer for s, _ in chosen).most_common(1)[0][1] / len(chosen)
        verdict = "pass" if mean - base >= 0.2 else "FAIL"
        lines.append(
            f"| {kind} | {len(chosen)} | {100 * mean:.1f} ± {100 * half:.1f} | {100 * base:.1f} "
            f"| {100 * (mean - base):+.1f} | {verdict} |"
        )
    return "\n".join(lines)


def confusion(task: Digits, samples: Sequence[Sample], said: Sequence[str]) -> str:
    """Binding: in scenes of two or more digits, the asked digit (or colour) against another visible one."""
    visible: dict[str, set[str]] = {}
    for group in {sample.group for sample in samples}:
        digits = scene(task.split, task.seed, int(group.rsplit("-", 1)[1]))[0].digits
        visible[group] = {digit.word for digit in digits} | {digit.colour for digit in digits}
    lines = ["| type, two or more digits | questions | the asked one | another visible one |", "|---|---|---|---|"]
    for kind in ("recognise", "attribute", "locate"):
        chosen = [(s, t) for s, t in zip(samples, said, strict=True) if s.type == kind and len(visible[s.group]) > 2]
        groups = [s.group for s, _ in chosen]
        hit = clustered([t == s.answer for s, t in chosen], groups)
        other = clustered([t != s.answer and t in visible[s.group] for s, t in chosen], groups)
        cells = " | ".join(f"{100 * mean:.1f} ± {100 * half:.1f}" for mean, half in (hit, other))
        lines.append(f"| {kind} | {len(chosen)} | {cells} |")
    return "\n".join(lines)


def check(loaded: LoadedModel, task: Task, name: str, pruned: int, layer: int, batch: int) -> None:
    """Print all figures of one task."""
    samples = task.samples()
    groups = [sample.group for sample in samples]
    start = time.time()
    texts = answer(loaded, samples, None, layer, batch)
    seconds = (time.time() - start) / len(samples)
    right = [task.correct(sample, text) for sample, text in zip(samples, texts, strict=True)]
    mean, half = clustered(right, groups)
    print(f"\n## {name}: {len(samples)} questions on {len(set(groups))} pictures\n")
    print(f"Unpruned: {100 * mean:.1f} ± {100 * half:.1f} % ({seconds:.3f} s per question, batches of {batch})\n")
    print(by_type(samples, right), flush=True)
    if isinstance(task, Digits):
        print("\n" + confusion(task, samples, [first_word(text) for text in texts]))
    few, full = samples[:pruned], right[:pruned]
    shares = torch.stack([foreground_tokens(sample, 12, 12) for sample in few])
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(shares.shape, generator=generator)
    kept = {"oracle": shares + 1e-6 * noise, "random": noise}
    print(f"\nSeparation on {len(few)} questions, {KEEP} of 144 tokens kept from layer {layer} on:\n")
    print("| kept | accuracy | share of unpruned |\n|---|---|---|")
    base = clustered(full, groups[:pruned])
    print(f"| all | {100 * base[0]:.1f} ± {100 * base[1]:.1f} | 100 |")
    for way, scores in kept.items():
        keep = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, scores.topk(KEEP).indices, True)
        said = answer(loaded, few, keep, layer, batch)
        mean, half = clustered([task.correct(s, t) for s, t in zip(few, said, strict=True)], groups[:pruned])
        print(f"| {way} | {100 * mean:.1f} ± {100 * half:.1f} | {100 * mean / base[0]:.1f} |", flush=True)


def main() -> None:
    """Run the gates."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--questions", type=int, default=2000, help="questions of the digits task")
    parser.add_argument("--easy", type=int, default=800, help="questions of easy-vqa")
    parser.add_argument("--pruned", type=int, default=600, help="questions of the separation check, per task")
    parser.add_argument("--split", default="test", choices=["validation", "test"])
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--layer", type=int, default=2)
    parser.add_argument("--batch", type=int, default=16)
    args = parser.parse_args()
    torch.set_num_threads(2)
    loaded = Embedded(dtype=args.dtype).load()
    print(f"# Gates: split {args.split}, {args.dtype}, seed 0")
    check(loaded, Digits(split=args.split, questions=args.questions), "digits", args.pruned, args.layer, args.batch)
    check(loaded, EasyVQA(split=args.split, questions=args.easy), "easy-vqa", args.pruned, args.layer, args.batch)


if __name__ == "__main__":
    main()
