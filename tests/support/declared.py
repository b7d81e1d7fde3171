"""Runs a pruner on prompts of plain tensors, and says where it does not do what it declares.

A prompt is made of pictures (here: short videos, which every component can take) and of text before, between and behind
them. A pruner gets the signals that it declares and no others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from tokenprune.errors import TokenPruneError
from tokenprune.pruners.base import Pruner, Selection
from tokenprune.signals.context import PruneContext
from tokenprune.signals.signals import INPUT_SIGNALS, WITH_TEXT
from tokenprune.testing import TowerTensors, make_context

DIM, HEADS, WIDTH = 16, 4, 8
PROJECTION = torch.randn(WIDTH, DIM, generator=torch.Generator().manual_seed(0))
#: Frames, rows and columns of the pictures: not all of one size, and more frames than a method has segments.
SHAPES = ((4, 2, 3), (3, 2, 2), (4, 2, 3))
#: Tokens to keep of each picture.
QUOTAS = ((7, 5, 9), (20, 11, 24), (1, 1, 1))
#: Rows of text before each picture and behind the last one.
TEXTS = ((3, 0, 0, 0), (0, 0, 0, 5), (2, 1, 3, 2))


@lru_cache(maxsize=1000)
def states(kind: str, seed: int, rows: int, *shape: int) -> Tensor:
    """Random states of some rows, other ones for every kind and seed. Hidden states are alike, as in one scene."""
    noise = torch.Generator().manual_seed(sum(ord(letter) * 31**at for at, letter in enumerate(kind)) % 2**31 + seed)
    return torch.randn(rows, *shape, generator=noise) + (2 if kind == "hidden" else 0)


@dataclass(frozen=True)
class Part:
    """A picture of a prompt, or a run of text.

    Attributes:
        seed: Decides what is in it.
        rows: Its rows.
        picture: Whether it is a picture.
        shape: Frames, rows and columns of a picture.
        quota: Tokens to keep of a picture.
    """

    seed: int
    rows: int
    picture: bool = False
    shape: tuple[int, int, int] = (0, 0, 0)
    quota: int = 0

    @property
    def grid(self) -> Tensor:
        """(frame, row, column) of each row."""
        if not self.picture:
            return torch.full((self.rows, 3), -1)
        return torch.cartesian_prod(*(torch.arange(size) for size in self.shape))

    def states(self, kind: str, *shape: int) -> Tensor:
        """States of one kind. Those of text are large: whoever reads them notices."""
        found = states(kind, self.seed, self.rows, *shape)
        return found if self.picture else 10 * found


@dataclass(frozen=True)
class Prompt:
    """Pictures with text around them.

    Attributes:
        parts: Pictures and text, in their order.
        sample: Number of the sample, from which random choices are made.
        layers: Layers of the decoder.
    """

    parts: tuple[Part, ...]
    sample: int = 0
    layers: int = 4

    def context(self, pruner: Pruner, layer: int, open_ended: bool) -> PruneContext:
        """What the pruner gets: the signals that it declares."""

        def all_rows(kind: str, *shape: int) -> Tensor:
            return torch.cat([part.states(kind, *shape) for part in self.parts])[None]

        def tower(number: int) -> TowerTensors:
            attention, received = (all_rows(f"{kind} {number}").sigmoid() for kind in ("attention", "received"))
            sources = ("query", "key", "hidden", *(["value"] if "tower_value" in pruner.needs else []))
            return TowerTensors(
                attention,
                received,
                key=all_rows(f"tower key {number}", WIDTH // 2),
                features=all_rows(f"features {number}", WIDTH),
                projector=lambda features: features @ PROJECTION,
                by_head={source: all_rows(f"tower {source} {number}", HEADS, WIDTH // HEADS) for source in sources},
            )

        pictures = [part for part in self.parts if part.picture]
        images = [pictures.index(part) if part.picture else 0 for part in self.parts for _ in range(part.rows)]
        needs = pruner.needs
        wanted = needs | ({"query", "key"} if needs & {"attention", "entering"} else set())
        heads = {"query": HEADS, "key": HEADS // 2, "value": HEADS // 2}
        given = {name: all_rows(name, count, DIM // HEADS) for name, count in heads.items() if name in wanted}
        given |= {name: all_rows(name, DIM) for name in ("previous", "embeddings") if name in wanted}
        return make_context(
            all_rows("hidden", DIM),
            torch.tensor([[part.picture for part in self.parts for _ in range(part.rows)]]),
            keep=[[part.quota for part in pictures]],
            images=torch.tensor([images]),
            **given,
            grid=torch.cat([part.grid for part in self.parts])[None] if "grid" in needs else None,
            tower={number: tower(number) for number in pruner.vision_layers},
            annotations={"foreground": all_rows("foreground")} if "annotations" in needs else None,
            final_norm=(lambda hidden: hidden * PROJECTION[0]) if "final_norm" in needs else None,
            needs=needs,
            layer=layer,
            num_layers=self.layers,
            num_heads=HEADS,
            sample_ids=[self.sample],
            open_ended=open_ended,
        )


def prompt(pictures: Sequence[Part], text: Sequence[int] = (0, 0, 0, 0), seed: int = 0) -> Prompt:
    """Pictures with some rows of text before each of them, and behind the last one."""
    parts: list[Part] = []
    for at, rows in enumerate((*text[: len(pictures)], text[-1])):
        if rows:
            parts.append(Part(seed=1000 + 10 * seed + at, rows=rows))
        if at < len(pictures):
            parts.append(pictures[at])
    return Prompt(tuple(parts))


def pictures(quotas: Sequence[int], seed: int = 0) -> list[Part]:
    """The three pictures."""
    return [
        Part(10 * seed + number, frames * rows * columns, True, (frames, rows, columns), quota)
        for number, ((frames, rows, columns), quota) in enumerate(zip(SHAPES, quotas, strict=True))
    ]


def stages(pruner: Pruner) -> list[Pruner]:
    """The pruner, or those that it combines."""
    if pruner.at(0) is pruner:
        return [pruner]
    return [inner for inner in pruner.inner_readers() if isinstance(inner, Pruner)]


def layers(pruner: Pruner) -> tuple[int, ...]:
    """Layers before which the pruner can act: 0, if what it reads exists there, and a later one."""
    return (2,) if pruner.needs - INPUT_SIGNALS else (0, 2)


def ways(pruner: Pruner) -> Iterator[tuple[int, bool, tuple[int, ...]]]:
    """Layer, whether the pruner decides how many survive, and quotas."""
    for layer in layers(pruner):
        for quotas in QUOTAS if layer == layers(pruner)[0] else QUOTAS[:1]:
            yield layer, False, quotas
        if pruner.adaptive:
            yield layer, True, QUOTAS[-1]


def run(pruner: Pruner, given: Prompt, layer: int, open_ended: bool) -> list[Selection]:
    """The selection for each picture of a prompt.

    Raises:
        TokenPruneError: The pruner refuses the prompt, at once or at the end of the prefill.
    """
    ctx = given.context(pruner, layer, open_ended)
    made = pruner.select(ctx)
    for bad, error in ctx.checks:
        if bad.any():
            raise error(0)
    states_after = ctx.hidden if made.hidden is None else made.hidden
    found, start = [], 0
    for part in given.parts:
        if part.picture:
            own = slice(start, start + part.rows)
            keep = made.keep[0, own]
            found.append(Selection(keep, states_after[0, own][keep]))
            start += part.rows
    return found


def same(one: Selection, other: Selection) -> bool:
    """Whether the same tokens are kept, with the same states."""
    if not torch.equal(one.keep, other.keep):
        return False
    assert one.hidden is not None
    assert other.hidden is not None
    return torch.allclose(one.hidden.double(), other.hidden.double(), rtol=1e-4, atol=1e-4)


def refusals(pruner: Pruner) -> list[str]:
    """Errors where the pruner gets exactly what it declares."""
    found = []
    for layer, open_ended, quotas in ways(pruner):
        for text in ((0, 0, 0, 0), TEXTS[-1]) if not pruner.needs & WITH_TEXT else (TEXTS[-1],):
            try:
                run(pruner, prompt(pictures(quotas), text), layer, open_ended)
            except TokenPruneError as error:
                found.append(f"layer {layer}, quotas {quotas}: {error}")
    return found


def changes_with_text(pruner: Pruner) -> list[str]:
    """Where the choice changes with the text around the pictures, or with the depth of the model."""
    found = []
    for layer, open_ended, quotas in ways(pruner):
        shown = pictures(quotas)
        without = run(pruner, prompt(shown), layer, open_ended)
        others = [prompt(shown, text, seed) for seed, text in enumerate(TEXTS)]
        for other in (*others, replace(prompt(shown), layers=9)):
            with_text = run(pruner, other, layer, open_ended)
            for number, (one, two) in enumerate(zip(without, with_text, strict=True)):
                if not same(one, two):
                    rows = [part.rows for part in other.parts]
                    found.append(f"layer {layer}, quotas {quotas}, rows {rows}: picture {number} gets something else")
    return found


def changes_with_others(pruner: Pruner) -> list[str]:
    """Where the choice for a picture is another one than for the picture alone.

    Of a pruner with random parts only the first picture is compared.
    """
    found = []
    for layer, open_ended, quotas in ways(pruner):
        shown = pictures(quotas)
        alone = [run(pruner, prompt([part]), layer, open_ended)[0] for part in shown]
        for order in ((0, 1, 2), (1, 0), (2, 0, 1)):
            together = run(pruner, prompt([shown[at] for at in order]), layer, open_ended)
            compared = order[:1] if "sample_ids" in pruner.needs else order
            for at, one in zip(compared, together, strict=False):
                if not same(one, alone[at]):
                    found.append(
                        f"layer {layer}, quotas {quotas}, pictures {order}: {at} gets something else than alone"
                    )
    return found
