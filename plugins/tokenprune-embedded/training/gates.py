"""Check an embedded model against its gates on held-out pictures or clips and print the figures as markdown.

Gates, per task: accuracy; every question type against always giving its most frequent answer; the asked digit against
the other visible ones; and separation: keeping the true foreground tokens must hold what random tokens lose.
Dropped tokens are *hidden* from layer ``--layer`` on by a mask (what pruning equals), so this check does not depend
on the engine that it is meant to serve. All questions about a picture share its prefix in one pass, each seeing the
picture and itself only: the same as separate prompts, several times faster. An answer is its first token.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from tokenprune.authoring import LoadedModel, Sample, Task, first_word, foreground_tokens
from tokenprune_embedded.models import Clips as ClipsModel
from tokenprune_embedded.models import Digits as DigitsModel
from tokenprune_embedded.tasks.digits import Digits, scene
from tokenprune_embedded.tasks.easy_vqa import EasyVQA
from tokenprune_embedded.tasks.moving_digits import MovingDigits, clip

KEEP = 1 / 9  # of the visual tokens: 11 %


class Reader:
    """Answers samples, all questions of a picture in one pass.

    Args:
        loaded: An embedded model.
        layer: The first layer that cannot see hidden tokens.
    """

    def __init__(self, loaded: LoadedModel, layer: int) -> None:
        self.loaded = loaded
        self.model = loaded.model.model
        self.words = loaded.processor.tokenizer
        self.image_token = loaded.model.config.image_token_id
        self.hidden_mask = torch.empty(0)
        self.layer = layer

    def prompt(self, sample: Sample) -> tuple[list[int], list[int]]:
        """The prefix (up to the picture's last token) and the question of the model's own prompt."""
        ids = self.loaded.encode([sample])["input_ids"][0].tolist()
        cut = len(ids) - ids[::-1].index(self.image_token)
        return ids[:cut], ids[cut:]

    def _hook(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, {**kwargs, "attention_mask": self.hidden_mask}

    @torch.no_grad()
    def answer(self, samples: Sequence[Sample], keep: torch.Tensor | None = None) -> list[int]:
        """The first token of every answer; ``keep`` (bool ``[samples, visual]``) is the same for one picture."""
        said: list[int] = []
        start = 0
        while start < len(samples):
            end = start
            while end < len(samples) and samples[end].group == samples[start].group:
                end += 1
            said += self._picture(samples[start:end], None if keep is None else keep[start])
            start = end
        return said

    def _picture(self, samples: Sequence[Sample], keep: torch.Tensor | None) -> list[int]:
        dtype = self.loaded.model.dtype
        prompts = [self.prompt(sample) for sample in samples]
        prefix = prompts[0][0]
        ids, positions, blocks, ends = list(prefix), list(range(len(prefix))), [-1] * len(prefix), []
        for number, (_, question) in enumerate(prompts):
            ids += question
            positions += range(len(prefix), len(prefix) + len(question))
            blocks += [number] * len(question)
            ends.append(len(ids) - 1)
        pixels = self.loaded.encode(samples[:1])["pixel_values"]
        visual = self.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-1][:, 1:]
        token_ids = torch.tensor([ids])
        embeds = self.model.get_input_embeddings()(token_ids).clone()
        embeds[token_ids == self.image_token] = self.model.multi_modal_projector(visual).flatten(0, 1).to(dtype)
        block = torch.tensor(blocks)
        seen = ((block[:, None] == block) | (block == -1)).tril()
        mask = torch.zeros(1, 1, len(ids), len(ids), dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)
        handles = []
        if keep is not None:
            hidden = torch.zeros(len(ids), dtype=torch.bool)
            hidden[token_ids[0] == self.image_token] = ~keep
            # a hidden token may see itself: its row must see something, and nobody reads its output
            seen = seen & (~hidden | torch.eye(len(ids), dtype=torch.bool))
            self.hidden_mask = torch.zeros_like(mask).masked_fill(~seen, torch.finfo(dtype).min)
            layers = self.model.language_model.layers[self.layer :]
            handles = [layer.register_forward_pre_hook(self._hook, with_kwargs=True) for layer in layers]
        try:
            states = self.model.language_model(
                inputs_embeds=embeds, attention_mask=mask, position_ids=torch.tensor([positions]), use_cache=False
            ).last_hidden_state[0, ends]
        finally:
            for handle in handles:
                handle.remove()
        return self.loaded.model.lm_head(states).argmax(-1).tolist()

    def right(self, samples: Sequence[Sample], said: Sequence[int]) -> list[bool]:
        """Whether each answer begins as expected."""
        wanted = [self.words(f" {sample.answer}", add_special_tokens=False).input_ids[0] for sample in samples]
        return [one == two for one, two in zip(said, wanted, strict=True)]


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


def confusion(task: Digits | MovingDigits, samples: Sequence[Sample], said: Sequence[str]) -> str:
    """Binding: where two or more digits are visible, the asked digit (or colour) against another visible one."""
    visible: dict[str, set[str]] = {}
    for group in {sample.group for sample in samples}:
        number = int(group.rsplit("-", 1)[1])
        if isinstance(task, MovingDigits):
            digits: Sequence[Any] = clip(task.split, task.seed, number).actors
        else:
            digits = scene(task.split, task.seed, number)[0].digits
        visible[group] = {digit.word for digit in digits} | {digit.colour for digit in digits}
    lines = ["| type, two or more digits | questions | the asked one | another visible one |", "|---|---|---|---|"]
    for kind in ("recognise", "attribute", "locate", "move", "last"):
        chosen = [(s, t) for s, t in zip(samples, said, strict=True) if s.type == kind and len(visible[s.group]) > 2]
        if not chosen:
            continue
        groups = [s.group for s, _ in chosen]
        hit = clustered([t == s.answer for s, t in chosen], groups)
        other = clustered([t != s.answer and t in visible[s.group] for s, t in chosen], groups)
        cells = " | ".join(f"{100 * mean:.1f} ± {100 * half:.1f}" for mean, half in (hit, other))
        lines.append(f"| {kind} | {len(chosen)} | {cells} |")
    return "\n".join(lines)


def check(reader: Reader, task: Task, name: str, pruned: int) -> None:
    """Print all figures of one task."""
    samples = task.samples()
    groups = [sample.group for sample in samples]
    start = time.time()
    said = reader.answer(samples)
    right = reader.right(samples, said)
    mean, half = clustered(right, groups)
    print(f"\n#### {name}: {len(samples)} questions on {len(set(groups))} pictures\n")
    print(f"Unpruned: {100 * mean:.1f} ± {100 * half:.1f} % ({time.time() - start:.0f} s)\n")
    print(by_type(samples, right), flush=True)
    if not isinstance(task, EasyVQA):
        print("\n" + confusion(task, samples, [first_word(reader.words.decode([token])) for token in said]))
    few, full = samples[:pruned], right[:pruned]
    side = math.isqrt(reader.loaded.visual_tokens or 0)
    shares = torch.stack([foreground_tokens(sample, side, side) for sample in few])
    visual = shares.shape[1]
    count = round(KEEP * visual)
    # one random choice per picture, the same for all its questions
    noise = torch.stack([torch.rand(visual, generator=_seeded(sample.group)) for sample in few])
    print(f"\nSeparation on {len(few)} questions, {count} of {visual} tokens kept from layer {reader.layer} on:\n")
    print("| kept | accuracy | share of unpruned | by type |\n|---|---|---|---|")
    base = clustered(full, groups[:pruned])
    print(f"| all | {100 * base[0]:.1f} ± {100 * base[1]:.1f} | 100 | see above |")
    for way, scores in {"oracle": shares + 1e-6 * noise, "random": noise}.items():
        keep = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, scores.topk(count).indices, True)
        kept = reader.right(few, reader.answer(few, keep))
        mean, half = clustered(kept, groups[:pruned])
        parts = [
            f"{kind} {100 * np.mean([r for s, r in zip(few, kept, strict=True) if s.type == kind]):.0f}"
            for kind in dict.fromkeys(sample.type for sample in few)
        ]
        print(
            f"| {way} | {100 * mean:.1f} ± {100 * half:.1f} | {100 * mean / base[0]:.1f} | {', '.join(parts)} |",
            flush=True,
        )


def _seeded(name: str) -> torch.Generator:
    """A generator that depends on a picture's name only."""
    return torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(name.encode()).digest()[:6]))


def main() -> None:
    """Run the gates."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", choices=["digits", "clips"], default="digits")
    parser.add_argument("--questions", type=int, default=2000, help="questions of the task")
    parser.add_argument("--easy", type=int, default=800, help="questions of easy-vqa (task digits)")
    parser.add_argument("--pruned", type=int, default=600, help="questions of the separation check, per task")
    parser.add_argument("--split", default="test", choices=["validation", "test"])
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--layer", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0, help="seed of the scenes: another one draws new pictures")
    parser.add_argument("--types", nargs="*", help="question types; the task's default by default")
    args = parser.parse_args()
    torch.set_num_threads(2)
    clips = args.task == "clips"
    model = ClipsModel if clips else DigitsModel
    reader = Reader(model(dtype=args.dtype).load(), args.layer)
    print(f"### Gates: split {args.split}, {args.dtype}, seed {args.seed}")
    kinds = {"types": tuple(args.types)} if args.types else {}
    task = MovingDigits if clips else Digits
    check(reader, task(split=args.split, questions=args.questions, seed=args.seed, **kinds), args.task, args.pruned)
    if args.easy and not clips:
        check(reader, EasyVQA(split=args.split, questions=args.easy), "easy-vqa", args.pruned)


if __name__ == "__main__":
    main()
