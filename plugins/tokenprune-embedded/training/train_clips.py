"""Train the embedded model for clips: projector, language model and word projections. See training/README.md.

Only the vision tower is given. All questions about a clip share its prefix: a block mask lets each question see the
clip and itself only, and positions restart, so the result is exactly that of separate sequences. Besides the answers,
linear probes on the states of a digit's tokens have to tell what it is, its colour, its place, and how far it has moved
so far: answers alone teach far too slowly to compare frames. The probes are not kept.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as functional
from safetensors.torch import load_file, save_file
from torch import nn

from tokenprune_embedded import checkpoint, sources
from tokenprune_embedded.tasks import clips, scenes

BUILD = checkpoint.CLIPS
SIDE = BUILD.side
NAMES = list(scenes.COLOURS)
ASKED = 8  # questions of a clip in a step
OTHERS = 2000  # words that the right answer is told apart from


@dataclass
class Example:
    """A clip as the language model meets it.

    Attributes:
        features: The tower's patch features, ``[visual tokens, 384]``.
        questions: (type, question, answer).
        tokens: Per visual token of a digit: (token, digit, colour, row, column, rows moved, columns moved).
    """

    features: torch.Tensor
    questions: list[tuple[str, str, str]]
    tokens: torch.Tensor


def questions_of(clip: clips.Clip) -> list[tuple[str, str, str]]:
    """The task's questions, and others that ask for the same facts digit by digit."""
    asked = []
    for kind in clips.TYPES:
        question = clips.ask(clip, kind)
        asked.append((kind, question.text, question.answer))
    asked.append(("first", "what digit appears first?", clip.actors[0].word))
    asked.append(("move color", "what color moves?", clip.mover.colour))
    asked.append(("last color", "what color appears last?", clip.actors[-1].colour))
    for actor in clip.actors:
        asked.append(("way", f"which way does {actor.colour} move?", actor.way))
        asked.append(("moves", f"does the {actor.word} move?", "no" if actor.way == clips.STILL else "yes"))
        asked.append(("recognise", f"what digit is {actor.colour}?", actor.word))
    return asked


def tokens_of(clip: clips.Clip) -> torch.Tensor:
    """See :class:`Example`."""
    rows = []
    for actor in clip.actors:
        for frame, (top, left) in enumerate(actor.path, actor.start):
            moved = [(now - then) // scenes.PATCH for now, then in zip((top, left), actor.path[0], strict=True)]
            for cell in range(4):
                row, col = top // scenes.PATCH + cell // 2, left // scenes.PATCH + cell % 2
                token = (frame * SIDE + row) * SIDE + col
                rows.append([token, scenes.WORDS.index(actor.word), NAMES.index(actor.colour), row, col, *moved])
    return torch.tensor(rows)


class Trainer:
    """The model in training and everything a step needs."""

    def __init__(self, seed: int) -> None:
        torch.manual_seed(seed)
        self.rng = np.random.default_rng(seed)
        self.tokenizer = checkpoint.tokenizer()
        model = checkpoint.skeleton(BUILD).train()
        self.tower = model.model.vision_tower.eval().requires_grad_(False)
        self.language, self.projector = model.model.language_model, model.model.multi_modal_projector
        self.language.embed_tokens = None  # the word embeddings are a projection of SmolLM2's
        self.table = checkpoint.with_image_token(sources.language_state()["embed_tokens.weight"])
        width, hidden = self.table.shape[1], self.language.config.hidden_size
        for layer in (self.projector.linear_1, self.projector.linear_2):
            nn.init.normal_(layer.weight, std=1 / math.sqrt(layer.in_features))
        self.mean, self.std = torch.zeros(()), torch.ones(())
        self.reads = nn.Parameter(torch.randn(width, hidden) / (math.sqrt(width) * self.table.std()))
        self.says = nn.Parameter(torch.randn(width, hidden) / (math.sqrt(width * hidden) * self.table.std()))
        layers = self.language.config.num_hidden_layers
        # what a token is should be there from the start, how it moved when frames have been compared
        self.facts = nn.ModuleDict({"digit": nn.Linear(hidden, 10), "colour": nn.Linear(hidden, len(NAMES))})
        self.facts["place"] = nn.Linear(hidden, 2)
        self.moved = nn.ModuleDict({str(layer): nn.Linear(hidden, 2) for layer in (layers // 2, layers - 2)})
        image = model.config.image_token_id
        prompt = self.tokenizer(BUILD.prompt("").removesuffix("\n")).input_ids
        self.prefix = torch.tensor([i for token in prompt for i in [token] * (BUILD.tokens if token == image else 1)])
        self.visual = (self.prefix == image).nonzero()[:, 0]

    def standardise(self, examples: list[Example]) -> None:
        """Train on features of mean 0 and variance 1, as a few of the tower's coordinates are huge.

        What is saved works on the tower's own features: the scale is folded into the projector there.
        """
        features = torch.cat([example.features for example in examples])
        self.mean, self.std = features.mean(0), features.std(0)

    @torch.no_grad()
    def draw(self, split: str, count: int) -> Example:
        """A new clip."""
        clip = clips.draw(self.rng, scenes.pool(split), count)
        pixels = torch.from_numpy(clip.pixels).permute(0, 3, 1, 2).float() / 255
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (checkpoint.MEAN, checkpoint.STD))
        states = self.tower((pixels - mean) / std, output_hidden_states=True).hidden_states[-1]
        return Example(states[:, 1:].flatten(0, 1), questions_of(clip), tokens_of(clip))

    def some(self, example: Example) -> Example:
        """The clip with the task's own questions and a few of the others."""
        own = len(clips.TYPES)
        others = self.rng.permutation(np.arange(own, len(example.questions)))[: ASKED - own]
        return replace(example, questions=example.questions[:own] + [example.questions[i] for i in others])

    def groups(self, rate: float) -> list[dict[str, Any]]:
        """Everything that is trained, with its learning rate; the projector has most to learn."""
        parts = (self.language, self.facts, self.moved)
        rest = [self.reads, self.says, *(parameter for part in parts for parameter in part.parameters())]
        return [{"params": rest, "peak": rate}, {"params": list(self.projector.parameters()), "peak": 2 * rate}]

    def pack(self, examples: list[Example]) -> tuple[torch.Tensor, ...]:
        """Token ids, labels, positions and the block mask of clips with their questions."""
        prefix, rows = len(self.prefix), []
        for example in examples:
            ids, labels, positions, blocks = [], [], [], []
            for number, (_, question, answer) in enumerate(example.questions):
                asked = self.tokenizer(f"\n{question}").input_ids
                said = self.tokenizer(f" {answer}").input_ids
                ids += asked + said
                labels += [-100] * (len(asked) - 1) + [*said, self.tokenizer.eos_token_id]
                positions += range(prefix, prefix + len(asked + said))
                blocks += [number] * len(asked + said)
            rows.append((ids, labels, positions, blocks))
        width = max(len(row[0]) for row in rows)
        fill = (0, -100, 0, -1)
        padded = [[row[part] + [fill[part]] * (width - len(row[part])) for row in rows] for part in range(4)]
        ids, labels, positions, blocks = (torch.tensor(part) for part in padded)
        positions = torch.cat([torch.arange(prefix).expand(len(rows), -1), positions], dim=1)
        blocks = torch.cat([torch.full((len(rows), prefix), -2), blocks], dim=1)
        causal = torch.ones(blocks.shape[1], blocks.shape[1], dtype=torch.bool).tril()
        same = (blocks[:, :, None] == blocks[:, None, :]) | (blocks == -2)[:, None, :]
        return ids, labels, positions, (same & causal)[:, None]

    def forward(self, examples: list[Example]) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        """Logits ``[answer tokens, words]``, which of the words should have been said, and the probes' losses."""
        ids, labels, positions, mask = self.pack(examples)
        features = (torch.stack([example.features for example in examples]) - self.mean) / self.std
        visual = self.projector.linear_2(functional.gelu(self.projector.linear_1(features)))
        words = self.table[torch.cat([self.prefix.expand(len(ids), -1), ids], dim=1)] @ self.reads
        where = self.visual[None, :, None].expand(len(ids), -1, visual.shape[-1])
        embeds = words.scatter(1, where, visual.to(words.dtype))
        output = self.language(
            inputs_embeds=embeds,
            attention_mask=mask,
            position_ids=positions,
            use_cache=False,
            output_hidden_states=True,
        )
        states = output.last_hidden_state[:, -ids.shape[1] :]
        # against the words that are answers and a random part of all others: the whole vocabulary takes half the time
        said = labels[labels != -100]
        words_to_say, said = torch.cat([said, torch.randint(len(self.table), (OTHERS,))]).unique(return_inverse=True)
        logits = states[labels != -100] @ (self.table[words_to_say] @ self.says).T
        return logits.float(), said[:-OTHERS], self.probe(examples, output.hidden_states)

    def probe(self, examples: list[Example], states: tuple[torch.Tensor, ...]) -> dict[str, torch.Tensor]:
        """Losses of the linear probes on the tokens of digits."""
        rows = torch.tensor([row for row, example in enumerate(examples) for _ in example.tokens])
        facts = torch.cat([example.tokens for example in examples])
        at = self.visual[facts[:, 0]]

        def seen(layer: int) -> torch.Tensor:
            state = states[layer][rows, at].float()
            return functional.layer_norm(state, state.shape[-1:])

        losses = {
            name: functional.cross_entropy(self.facts[name](seen(0)), facts[:, column])
            for name, column in (("digit", 1), ("colour", 2))
        }
        losses["place"] = functional.mse_loss(self.facts["place"](seen(0)), facts[:, 3:5] / 2 - 1.5)
        for layer, probe in self.moved.items():
            losses[f"moved {layer}"] = functional.mse_loss(probe(seen(int(layer))), facts[:, 5:] / 2) / 0.25
        return losses

    def judge(self, examples: list[Example], logits: torch.Tensor, labels: torch.Tensor) -> list[tuple[str, bool]]:
        """Per question (type, whether every token of its answer was right)."""
        right = (logits.argmax(-1) == labels).tolist()
        outcomes, at = [], 0
        for example in examples:
            for kind, _, answer in example.questions:
                length = len(self.tokenizer(f" {answer}").input_ids) + 1
                outcomes.append((kind, all(right[at : at + length])))
                at += length
        return outcomes

    def state(self) -> dict[str, torch.Tensor]:
        """What is shipped, in fp16."""
        tensors = {f"projector.{name}": value for name, value in self.projector.state_dict().items()}
        folded = tensors["projector.linear_1.weight"] / self.std
        tensors["projector.linear_1.weight"] = folded
        tensors["projector.linear_1.bias"] = tensors["projector.linear_1.bias"] - folded @ self.mean
        tensors |= {f"language.{name}": value for name, value in self.language.state_dict().items()}
        tensors |= {"words.reads": self.reads, "words.says": self.says}
        return {name: value.detach().half().contiguous() for name, value in tensors.items()}

    def restore(self, path: Path) -> None:
        """Continue from shipped weights."""
        tensors = {name: value.float() for name, value in load_file(path).items()}
        for module, part in ((self.projector, "projector."), (self.language, "language.")):
            module.load_state_dict({k.removeprefix(part): v for k, v in tensors.items() if k.startswith(part)})
        first = self.projector.linear_1
        first.bias.data += first.weight.data @ self.mean
        first.weight.data *= self.std
        self.reads.data.copy_(tensors["words.reads"])
        self.says.data.copy_(tensors["words.says"])


def save(tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Write whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    save_file(tensors, partial)
    os.replace(partial, path)


def table(outcomes: list[tuple[str, bool]]) -> str:
    """Accuracy per type on one line."""
    groups: dict[str, list[bool]] = defaultdict(list)
    for kind, right in outcomes:
        groups[kind].append(right)
    return " ".join(f"{kind} {np.mean(rights):.2f}" for kind, rights in sorted(groups.items()))


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=45, help="time budget; the schedule follows it")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--resume", type=Path, help="continue from these weights")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=16, help="clips in a step")
    parser.add_argument("--fresh", type=int, default=2, help="clips of a step that were never seen before")
    parser.add_argument("--pool", type=int, default=300, help="clips drawn before the first step")
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


def main() -> None:
    """Train."""
    args = parse()
    torch.set_num_threads(args.threads)
    start = time.time()

    def log(text: str) -> None:
        print(f"[{(time.time() - start) / 60:5.1f} min] {text}", flush=True)

    log("arguments " + json.dumps({key: str(value) for key, value in vars(args).items()}))
    trainer = Trainer(args.seed)
    pool = [trainer.draw("train", int(trainer.rng.integers(1, clips.MOST + 1))) for _ in range(args.pool)]
    trainer.standardise(pool)
    if args.resume:
        trainer.restore(args.resume)
    log(f"{len(pool)} clips, {sum(value.numel() for value in trainer.state().values()) / 1e6:.1f} million weights kept")
    groups = trainer.groups(args.rate)
    optimizer = torch.optim.AdamW(groups, lr=args.rate, weight_decay=0.01, betas=(0.9, 0.98))
    recent: list[tuple[str, bool]] = []
    losses: list[list[float]] = []
    begin = saved = time.time()
    step = 0
    while (passed := (time.time() - begin) / (60 * args.minutes)) < 1:
        rate = min(1.0, (step + 1) / 100) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * passed)))
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * rate
        pool += [trainer.draw("train", int(trainer.rng.integers(1, clips.MOST + 1))) for _ in range(args.fresh)]
        old = trainer.rng.choice(len(pool) - args.fresh, args.batch - args.fresh, replace=False)
        examples = [trainer.some(example) for example in pool[len(pool) - args.fresh :] + [pool[i] for i in old]]
        with torch.autocast("cpu", torch.bfloat16):
            logits, labels, parts = trainer.forward(examples)
        answers = functional.cross_entropy(logits, labels)
        loss = answers + 0.5 * sum(parts.values())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_([parameter for group in groups for parameter in group["params"]], 1.0)
        optimizer.step()
        losses.append([answers.item(), *(value.item() for value in parts.values())])
        recent += trainer.judge(examples[: args.fresh], logits, labels)
        step += 1
        if step % 50 == 0:
            means = ", ".join(
                f"{name} {value:.2f}"
                for name, value in zip(("answers", *parts), np.mean(losses[-50:], axis=0), strict=True)
            )
            log(f"step {step} clips {len(pool)} | {means} | new clips: {table(recent)}")
            recent = []
        if time.time() - saved > 240:
            save(trainer.state(), args.out)
            saved = time.time()
    save(trainer.state(), args.out)
    log(f"{step} steps, {len(pool)} clips")
    outcomes = []
    with torch.no_grad():
        for _ in range(25):
            examples = [trainer.draw("validation", int(trainer.rng.integers(2, clips.MOST + 1))) for _ in range(8)]
            outcomes += trainer.judge(examples, *trainer.forward(examples)[:2])
    log(f"validation, 200 clips | {table(outcomes)}")


if __name__ == "__main__":
    main()
