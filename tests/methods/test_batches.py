"""No result depends on who shares a batch: every named method, on every family, in both position modes.

Where a method takes two kinds of samples of a family, each kind has one of the modes, in turn.

A batch padded on the left runs, and then each of its samples by itself, without padding. Both must keep the same tokens
at every stage, and give the same logits at the prompt's end and at the step after it, to the rounding of float32
(:func:`tests.support.oracle.tolerance`). The samples differ in their images, one has none, and to ``keep_count`` the
first loses nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import pytest
import torch
from torch import Tensor

import tokenprune as tp
from tests.support.matrix import difference
from tests.support.method_table import methods, prepared
from tests.support.oracle import Inputs, decoder_layers, tolerance
from tests.support.tiny import CASES, CORE
from tests.support.tiny.core import Batch, Sized
from tokenprune.budgets.keep import KeepCount, KeepRatio
from tokenprune.config import Positions
from tokenprune.errors import TokenPruneError

SAMPLES: dict[str, list[list[Sized]]] = {
    "images": [[("image", 1)], [("image", 2), ("image", 0)], [], [("image", 0)] * 3],
    "frames": [[("image", 1)] * 2, [("image", 2)] * 3, [], [("image", 0)] * 4],
    "videos": [[("video", 0)], [], [("video", 0)] * 2, [("video", 0)] * 3],
    "mixed": [[("video", 0)], [], [("image", 0)], [("image", 0), ("video", 0), ("video", 0)]],
}
FRAMES = {"dycoke", "evs", "framefusion"}
"""Methods that compare the frames of a video, or several images of one size; a single image is refused."""
BY_TILE = {"apet", "hiprune", "prunesid", "scope", "visionzip", "vispruner"}
"""Methods that divide a budget tile by tile."""
REFUSED = {
    # images are an overview and tiles of other sizes: no frames
    *(("evs", family, "frames") for family in ("llava_next", "llava_onevision", "llava_next_video")),
    # tiles of images and frames of videos together
    *((name, family, "mixed") for name in BY_TILE for family in ("llava_onevision", "llava_next_video", "video_llava")),
}
"""What must be refused, of the batch and of a sample alone; every other cell must run."""


def fitting(name: str, family: str) -> list[str]:
    """The kinds of samples for a method on a family."""
    images = "frames" if name in FRAMES else "images"
    if "video" not in CASES[family].variants:
        return [images]
    if name in FRAMES:
        return [images, "videos"]
    return [images, "mixed", *(["videos"] if (name, family, "mixed") in REFUSED else [])]


MODES: tuple[Positions, Positions] = ("original", "renumbered")
CELLS = [(name, family, kind) for family in CORE for name in methods() for kind in fitting(name, family)]


@lru_cache(maxsize=4)
def model_for(family: str, positions: Positions) -> Any:
    """The tiny model, but where all norms of its queries are 1 their weights are spread: no two scores shall be equal.

    Layers with a window refuse renumbered sequences that are longer: for these the window holds everything.
    """
    model: Any = CASES[family].build()
    noise = torch.Generator().manual_seed(0)
    for name, weight in model.named_parameters():
        if "q_norm" in name or "k_norm" in name:
            weight.data += 0.3 * torch.randn(weight.shape, generator=noise)
    for layer in decoder_layers(model):
        if positions == "renumbered" and getattr(layer.self_attn, "sliding_window", None) is not None:
            model.config.get_text_config().sliding_window = layer.self_attn.sliding_window = 500
    return model


@dataclass(frozen=True)
class Result:
    """What one sample got.

    Attributes:
        kept: Per stage the kept visual tokens, counted from the sample's first token.
        logits: Of the prompt's last token and of the step after it, ``[2, vocab]``.
    """

    kept: list[list[int]]
    logits: Tensor


def results(model: Any, inputs: Inputs, run: tp.Run, numbers: list[int]) -> list[Result]:
    """One result per sample of a batch, in which the samples have these numbers."""
    run.annotate(sample_ids=numbers)
    out = model.generate(**inputs, max_new_tokens=2, output_logits=True, return_dict_in_generate=True)
    padding = (inputs["attention_mask"] == 0).sum(1).tolist()
    logits = torch.stack(out.logits, 1)
    return [
        Result([[at - padding[row] for at in stage.kept[row].tolist() if at >= 0] for stage in run.stages], logits[row])
        for row in range(len(numbers))
    ]


@torch.no_grad()
def outcome(method: tp.Method, model: Any, batches: list[Batch]) -> tuple[list[Result], str]:
    """The results of some batches' samples, numbered from 0; or why they were refused."""
    made: list[Result] = []
    try:
        with tp.apply(model, method) as run:
            for batch in batches:
                first = len(made)
                made += results(model, batch.inputs, run, [*range(first, first + len(batch.groups))])
    except TokenPruneError as error:
        return [], str(error)
    return made, ""


def count_of_first(family: str, kind: str) -> int:
    """Visual tokens of the first sample: to a budget of so many it loses nothing, and others lose some."""
    batch, _ = CASES[family].mixed(model_for(family, "original"), SAMPLES[kind][:1])
    return sum(batch.groups[0])


def modes(name: str, family: str, kind: str) -> tuple[Positions, ...]:
    """The position modes of a cell. A method has both on every family, and both with every kind."""
    kinds = [other for other in fitting(name, family) if (name, family, other) not in REFUSED]
    if len(kinds) < 2 or kind not in kinds or name in FRAMES:  # few methods have frames
        return MODES
    return (MODES[(turn(name, family) + kinds.index(kind)) % 2],)


def turn(name: str, family: str) -> int:
    """A number that goes on by one from method to method, and from family to family."""
    return list(methods()).index(name) + CORE.index(family)


def variants(name: str, family: str, kind: str) -> list[tp.Method]:
    """A method with half of the tokens or with a count of them, and renumbered with a count of them.

    The former takes turns, so that every method and every family has both. Methods with a budget of their own keep it.
    """
    made = []
    for positions in modes(name, family, kind):
        method = prepared(name)
        if isinstance(method.budget, KeepRatio) and (positions == "renumbered" or turn(name, family) // 2 % 2):
            count = count_of_first(family, kind)
            method = method.model_copy(update={"budget": KeepCount(tokens=count)})
        made.append(method.model_copy(update={"positions": positions}))
    return made


@pytest.mark.each("name")
@pytest.mark.parametrize(("name", "family", "kind"), CELLS)
def test_a_sample_gets_in_a_batch_what_it_gets_alone(name: str, family: str, kind: str) -> None:
    case = CASES[family]
    for how in variants(name, family, kind):
        model = model_for(family, how.positions)
        batch, alone = case.mixed(model, SAMPLES[kind], seed=3)
        together, refused = outcome(how, model, [batch])
        each, refused_alone = outcome(how, model, alone)
        assert (bool(refused), bool(refused_alone)) == ((name, family, kind) in REFUSED,) * 2, refused or refused_alone
        for number, (ours, own) in enumerate(zip(together, each, strict=True)):
            assert ours.kept == own.kept, f"sample {number} keeps other tokens"
            assert difference(ours.logits, own.logits) <= tolerance(own.logits), f"sample {number}"


def test_all_cells_are_counted() -> None:
    """Every method is compared on every family, there in both modes and at every kind in both; few are refused."""
    assert {(name, family) for name, family, _ in CELLS} == {(name, family) for name in methods() for family in CORE}
    runs = [(*cell, mode) for cell in CELLS if cell not in REFUSED for mode in modes(*cell)]
    assert {(name, family, mode) for name, family, _, mode in runs} == {
        (name, family, mode) for name, family, _ in set(CELLS) - REFUSED for mode in MODES
    }
    assert {(name, kind, mode) for name, _, kind, mode in runs} == {
        (name, kind, mode) for name, _, kind in CELLS for mode in MODES
    }
    assert {(family, kind, mode) for _, family, kind, mode in runs} == {
        (family, kind, mode) for _, family, kind in set(CELLS) - REFUSED for mode in MODES
    }
    assert len(REFUSED & set(CELLS)) == len(REFUSED) == 21
