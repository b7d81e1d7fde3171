"""Train the embedded model's projector and low-rank adapter. See training/README.md for the command and the figures.

Two stages. *Grounding*: the projector learns to turn a patch into the sum of the words that name it (digit, colour,
place). *Answering*: projector and adapter learn to answer; tower and language model stay frozen. All questions about a
picture share its prefix: a block mask lets each question see the picture and itself only, and positions restart, so
the result is exactly that of separate sequences.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as functional
from safetensors.torch import load_file, save_file
from torch import nn

from tokenprune_embedded import checkpoint
from tokenprune_embedded.tasks import easy_vqa, scenes

BFLOAT = torch.bfloat16
STRETCH = 1.5
PLACES = ("left", "right", "top", "bottom")


class Product(torch.autograd.Function):
    """``x @ (W + up @ down)^T`` with the sum formed beforehand; gradients only for ``x``, ``up`` and ``down``.

    Forming the sum once a step spares a pass over the activations per layer, which is half of the time on a CPU.
    """

    @staticmethod
    def forward(ctx, states, down, up, merged):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(states, down, up, merged)
        return functional.linear(states, merged)

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        states, down, up, merged = ctx.saved_tensors
        flat, given = gradient.reshape(-1, gradient.shape[-1]), states.reshape(-1, states.shape[-1])
        low, high = down.to(flat.dtype), up.to(flat.dtype)
        grad_down = (flat @ high).T @ given
        grad_up = flat.T @ (given @ low.T)
        return gradient @ merged, grad_down.float(), grad_up.float(), None


class LowRank(nn.Module):
    """A frozen linear layer plus a trainable low-rank change. Call ``merge`` after every change of the parameters."""

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.weight = base.weight.data
        self.merged = self.weight.clone()
        self.down = nn.Parameter(torch.randn(rank, base.in_features) / math.sqrt(base.in_features))
        self.up = nn.Parameter(torch.zeros(base.out_features, rank))

    @torch.no_grad()
    def merge(self) -> None:
        """Form the sum of the frozen weight and the change."""
        torch.addmm(self.weight, self.up.to(BFLOAT), self.down.to(BFLOAT), out=self.merged)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return Product.apply(states, self.down, self.up, self.merged)


def add_adapter(model: nn.Module, rank: int) -> dict[str, LowRank]:
    """Wrap every linear layer of the language model's blocks."""
    wrapped = {}
    for index, layer in enumerate(model.model.language_model.layers):
        for block in (layer.self_attn, layer.mlp):
            for name, child in list(block.named_children()):
                if isinstance(child, nn.Linear):
                    wrapped[f"{index}.{name}"] = LowRank(child, rank)
                    setattr(block, name, wrapped[f"{index}.{name}"])
    return wrapped


@dataclass
class Picture:
    """A picture, its questions as (type, question, answer), and the words that name each patch."""

    pixels: np.ndarray
    questions: list[tuple[str, str, str]]
    words: list[list[str]]
    ends: list[bool] = field(default_factory=list)  # for which questions the end of the answer is asked too


def digit_picture(rng: np.random.Generator, split: str, most: int, least: int = 1) -> Picture:
    """A scene of digits with (nearly) every question that can be asked about it."""
    scene = scenes.draw(rng, scenes.pool(split), int(rng.integers(least, most + 1)))
    asked: list[tuple[str, str, str]] = []
    words: list[list[str]] = [[] for _ in range(checkpoint.DIGITS.tokens)]
    for digit in scene.digits:
        asked.append(("recognise", f"what digit is {digit.colour}?", digit.word))
        asked.append(("attribute", f"what color is the {digit.word}?", digit.colour))
        asked.append(("exist", f"is there a {digit.word}?", "yes"))
        for cell in range(4):
            words[(digit.row + cell // 2) * 12 + digit.col + cell % 2] = [digit.word, digit.colour]
    absent = [word for word in scenes.WORDS if word not in {digit.word for digit in scene.digits}]
    for word in rng.permutation(absent)[: len(scene.digits)]:
        asked.append(("exist", f"is there a {word}?", "no"))
    asked.append(("count", "how many digits?", scenes.WORDS[len(scene.digits)]))
    for side in scenes.SIDES:
        far = scenes.extremes(scene, side)
        if len(far) == 1:
            asked.append(("locate", f"what digit is {side}?", far[0].word))
    return Picture(scene.pixels, asked, words)


def easy_picture(rng: np.random.Generator, split: str) -> Picture:
    """An easy-VQA picture on its canvas with all its questions of fact and some of its yes/no questions."""
    by_image = easy_vqa.questions(split)  # type: ignore[arg-type]
    image = int(rng.choice(list(by_image)))
    pixels, foreground = easy_vqa.scene(split, image, rng)  # type: ignore[arg-type]
    asked = []
    facts: dict[str, str] = {}
    kinds: dict[str, list[tuple[str, str, str]]] = defaultdict(list)
    for question, answer in by_image[image]:
        kind = easy_vqa.kind_of(question)
        kinds[kind if kind in ("color", "shape") else f"{kind} {answer}"].append((kind, question, answer))
        if kind in ("color", "shape"):
            facts[kind] = answer
    for kind, limit in (
        ("color", 2),
        ("shape", 2),
        ("exist yes", 2),
        ("exist no", 2),
        ("absent yes", 2),
        ("absent no", 2),
    ):
        asked += [kinds[kind][i] for i in rng.permutation(len(kinds[kind]))[:limit]]
    share = foreground.reshape(12, 14, 12, 14).mean(axis=(1, 3)).flatten()
    words = [list(facts.values()) if part > 0.1 else [] for part in share]
    return Picture(pixels, asked, words)


class Trainer:
    """The model in training and everything a step needs."""

    def __init__(self, rank: int, seed: int) -> None:
        torch.manual_seed(seed)
        self.tokenizer = checkpoint.tokenizer()
        model = checkpoint.skeleton(checkpoint.DIGITS)
        model.requires_grad_(False)
        self.tower = model.model.vision_tower  # in fp32: fine strokes get lost otherwise
        self.language = model.model.language_model.to(BFLOAT)
        self.projector = model.model.multi_modal_projector.float()
        self.projector.requires_grad_(True)
        self.adapter = add_adapter(model, rank)
        self.table = self.language.embed_tokens.weight
        self.start = self.tokenizer(checkpoint.START).input_ids
        self.rng = np.random.default_rng(seed)

    def word(self, text: str) -> torch.Tensor:
        """The embedding of a word's first token."""
        return self.table[self.tokenizer(" " + text).input_ids[0]].float()

    @torch.no_grad()
    def features(self, pictures: list[Picture]) -> torch.Tensor:
        """The frozen tower's patch features ``[pictures, 144, 384]``."""
        pixels = torch.from_numpy(np.stack([picture.pixels for picture in pictures])).permute(0, 3, 1, 2).float() / 255
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (checkpoint.MEAN, checkpoint.STD))
        states = self.tower((pixels - mean) / std, output_hidden_states=True).hidden_states[-1]
        return states[:, 1:]

    def project(self, features: torch.Tensor) -> torch.Tensor:
        """Llava's projector."""
        hidden = functional.gelu(self.projector.linear_1(features))
        return self.projector.linear_2(hidden)

    def ground(self, pictures: list[Picture], steps: int, fresh: bool) -> str:
        """Stage 1: regress each patch onto the sum of the embeddings of the words that name it.

        Number words are near each other in the language model's table, so their differences are stretched, and two
        classification losses (which digit, which colour) are added on the same embeddings.
        """
        features = torch.cat([self.features(pictures[i : i + 16]) for i in range(0, len(pictures), 16)]).flatten(0, 1)
        named = [words for picture in pictures for words in picture.words]
        bank = {word: self.word(word) for word in {*PLACES, *(word for words in named for word in words)}}
        axes, classes = [], []
        for names in (scenes.WORDS, tuple(scenes.COLOURS)):
            table = torch.stack([self.word(name) for name in names])
            middle = table.mean(0)
            for name in names:
                bank[name] = middle + STRETCH * (bank[name] - middle)
            axes.append((middle, torch.linalg.pinv(STRETCH * (table - middle))))
            found = [[names.index(word) for word in words if word in names] for words in named]
            # easy-VQA's shapes have no digit: -100 takes them out of that loss
            classes.append(torch.tensor([(hits or [-100])[0] for hits in found]))
        blank = 0.5 * self.table[self.tokenizer(".").input_ids[0]].float()
        target = torch.stack(
            [torch.stack([bank[word] for word in words]).sum(0) if words else blank for words in named]
        )
        grid = torch.linspace(0, 1, 12)
        column, row = grid.repeat(12)[:, None], grid.repeat_interleave(12)[:, None]
        place = (1 - column) * bank["left"] + column * bank["right"] + (1 - row) * bank["top"] + row * bank["bottom"]
        target = target + 0.5 * place.repeat(len(pictures), 1)
        object_at = torch.tensor([bool(words) for words in named])
        inside, outside = object_at.nonzero()[:, 0], (~object_at).nonzero()[:, 0]

        # the tower's features have a few huge coordinates: train on standardised ones, fold the scale in afterwards
        mean, std = features.mean(0), features.std(0)
        standard, head = (features - mean) / std, self.projector.linear_2
        first = nn.Linear(standard.shape[1], head.in_features)
        with torch.no_grad():
            if fresh:
                nn.init.normal_(head.weight, std=0.02)
                head.bias.copy_(target.mean(0))
            else:
                first.weight.copy_(self.projector.linear_1.weight * std)
                first.bias.copy_(self.projector.linear_1.bias + self.projector.linear_1.weight @ mean)
        optimizer = torch.optim.AdamW([*first.parameters(), *head.parameters()], weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
        power = target.var()
        for _ in range(steps):
            picks = [part[torch.from_numpy(self.rng.integers(0, len(part), 256))] for part in (inside, outside)]
            chosen = torch.cat(picks)
            output = head(functional.gelu(first(standard[chosen])))
            rest = functional.mse_loss(output, target[chosen]) / power
            loss = rest
            for (middle, axis), kind in zip(axes, classes, strict=True):
                scores = (output[:256] - middle) @ axis
                loss = loss + 0.3 * functional.cross_entropy(4 * scores, kind[picks[0]])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        with torch.no_grad():
            self.projector.linear_1.weight.copy_(first.weight / std)
            self.projector.linear_1.bias.copy_(first.bias - self.projector.linear_1.weight @ mean)
        return f"grounding: {len(pictures)} pictures, {steps} steps, share of variance left {rest.item():.3f}"

    def pack(self, pictures: list[Picture]) -> tuple[torch.Tensor, ...]:
        """Token ids, labels, positions and the block mask of pictures with all their questions."""
        prefix = len(self.start) + checkpoint.DIGITS.tokens
        rows = []
        for picture in pictures:
            ids, labels, positions, blocks = [], [], [], []
            turn = int(self.rng.integers(4))
            picture.ends[:] = [number % 4 == turn for number in range(len(picture.questions))]
            for number, (_, question, answer) in enumerate(picture.questions):
                asked = self.tokenizer(f"\n{question}").input_ids
                said = self.tokenizer(f" {answer}").input_ids
                labels_here = [-100] * (len(asked) - 1) + said
                ids_here = asked + said[:-1]
                if number % 4 == turn:  # that an answer ends is learnt from a part of them
                    ids_here, labels_here = asked + said, [*labels_here, self.tokenizer.eos_token_id]
                ids += ids_here
                labels += labels_here
                positions += range(prefix, prefix + len(ids_here))
                blocks += [number] * len(ids_here)
            rows.append((ids, labels, positions, blocks))
        width = max(len(row[0]) for row in rows)
        fill = (0, -100, 0, -1)
        padded = [[row[part] + [fill[part]] * (width - len(row[part])) for row in rows] for part in range(4)]
        ids, labels, positions, blocks = (torch.tensor(part) for part in padded)
        count = len(rows)
        positions = torch.cat([torch.arange(prefix).expand(count, -1), positions], dim=1)
        blocks = torch.cat([torch.full((count, prefix), -2), blocks], dim=1)
        causal = torch.ones(prefix + width, prefix + width, dtype=torch.bool).tril()
        same = (blocks[:, :, None] == blocks[:, None, :]) | (blocks == -2)[:, None, :]
        mask = torch.zeros(count, 1, prefix + width, prefix + width, dtype=BFLOAT)
        mask.masked_fill_(~(same & causal)[:, None], torch.finfo(BFLOAT).min)
        return ids, labels, positions, mask

    def forward(self, pictures: list[Picture]) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits ``[answer tokens, vocabulary]`` and the tokens that should have been said."""
        ids, labels, positions, mask = self.pack(pictures)
        visual = self.project(self.features(pictures)).to(BFLOAT)
        start = self.table[torch.tensor(self.start)].expand(len(pictures), -1, -1)
        embeds = torch.cat([start, visual, self.table[ids]], dim=1)
        states = self.language(
            inputs_embeds=embeds, attention_mask=mask, position_ids=positions, use_cache=False
        ).last_hidden_state[:, -ids.shape[1] :]
        chosen = labels != -100
        return functional.linear(states[chosen], self.table).float(), labels[chosen]

    def judge(self, pictures: list[Picture], logits: torch.Tensor, labels: torch.Tensor) -> list[tuple[str, bool]]:
        """Per question (type, whether every token of its answer was right)."""
        right = (logits.argmax(-1) == labels).tolist()
        outcomes, at = [], 0
        for picture in pictures:
            digits = sum(kind == "recognise" for kind, _, _ in picture.questions)
            for (kind, _, answer), ends in zip(picture.questions, picture.ends, strict=True):
                length = len(self.tokenizer(f" {answer}").input_ids) + ends
                name = f"{kind}>1" if kind in ("recognise", "attribute", "locate") and digits > 1 else kind
                outcomes.append((name, all(right[at : at + length])))
                at += length
        return outcomes

    def state(self) -> dict[str, torch.Tensor]:
        """What is shipped: projector and adapter, in fp16."""
        tensors = {f"projector.{name}": value for name, value in self.projector.state_dict().items()}
        for name, module in self.adapter.items():
            tensors[f"adapter.{name}.down"], tensors[f"adapter.{name}.up"] = module.down.data, module.up.data
        return {name: value.detach().half().contiguous() for name, value in tensors.items()}

    def restore(self, path: Path) -> None:
        """Continue from shipped weights."""
        tensors = {name: value.float() for name, value in load_file(path).items()}
        part = "projector."
        self.projector.load_state_dict({k.removeprefix(part): v for k, v in tensors.items() if k.startswith(part)})
        for name, module in self.adapter.items():
            module.down.data.copy_(tensors[f"adapter.{name}.down"])
            module.up.data.copy_(tensors[f"adapter.{name}.up"])
            module.merge()


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
    parser.add_argument("--minutes", type=float, default=30, help="time budget of stage 2; the schedule follows it")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--resume", type=Path, help="continue from these weights")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--batch", type=int, default=2, help="pictures in a step")
    parser.add_argument("--rate", type=float, default=8e-4)
    parser.add_argument("--easy", type=float, default=0.2, help="share of easy-VQA pictures")
    parser.add_argument("--ground", type=int, default=600, help="pictures of stage 1; 0 skips it")
    parser.add_argument("--save-minutes", type=float, default=4)
    return parser.parse_args()


def main() -> None:
    """Run both stages."""
    args = parse()
    torch.set_num_threads(2)
    begin = time.time()

    def log(text: str) -> None:
        print(f"[{(time.time() - begin) / 60:5.1f} min] {text}", flush=True)

    log("arguments " + json.dumps({key: str(value) for key, value in vars(args).items()}))
    trainer = Trainer(args.rank, args.seed)
    rng = trainer.rng

    def make(split: str, most: int) -> Picture:
        return easy_picture(rng, split) if rng.random() < args.easy else digit_picture(rng, split, most)

    if args.resume:
        trainer.restore(args.resume)
    if args.ground:
        crowded = [digit_picture(rng, "train", 6, least=6) for _ in range(args.ground * 2 // 3)]
        ordinary = [make("train", 3) for _ in range(args.ground // 3)]
        log(trainer.ground(crowded + ordinary, 1200, fresh=not args.resume))
        save(trainer.state(), args.out)
    adapter = [parameter for module in trainer.adapter.values() for parameter in (module.down, module.up)]
    groups = [{"params": adapter, "scale": 1.0}, {"params": list(trainer.projector.parameters()), "scale": 0.2}]
    optimizer = torch.optim.AdamW(groups, lr=args.rate, weight_decay=0.0, betas=(0.9, 0.98))
    recent: list[tuple[str, bool]] = []
    losses: list[float] = []
    start = saved = time.time()
    step = 0
    while (passed := (time.time() - start) / (60 * args.minutes)) < 1:
        rate = min(1.0, (step + 1) / 20) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * passed)))
        for group in optimizer.param_groups:
            group["lr"] = args.rate * group["scale"] * rate
        pictures = [make("train", 2 if passed < 0.08 and not args.resume else 3) for _ in range(args.batch)]
        logits, labels = trainer.forward(pictures)
        loss = functional.cross_entropy(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 1.0)
        optimizer.step()
        for module in trainer.adapter.values():
            module.merge()
        losses.append(loss.item())
        recent += trainer.judge(pictures, logits, labels)
        step += 1
        if step % 20 == 0:
            log(f"step {step} loss {np.mean(losses[-20:]):.3f} rate {args.rate * rate:.1e} | {table(recent)}")
            recent = []
        if time.time() - saved > 60 * args.save_minutes:
            save(trainer.state(), args.out)
            saved = time.time()
    save(trainer.state(), args.out)
    log(f"{step} steps, {step * args.batch} pictures")
    outcomes = []
    with torch.no_grad():
        for _ in range(25):
            pictures = [make("validation", 3) for _ in range(4)]
            outcomes += trainer.judge(pictures, *trainer.forward(pictures))
    log(f"validation, 100 pictures | {table(outcomes)}")


if __name__ == "__main__":
    main()
