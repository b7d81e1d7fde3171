"""No result depends on who shares a batch: every named method, on every family, in both position modes.

A batch padded on the left runs, and then each of its samples by itself, without padding. Both must keep the same tokens
at every stage, and give the same logits at the prompt's end and at the step after it, to the rounding of float32
(:func:`tests.support.oracle.tolerance`). The samples differ in their images, one has none, and with ``keep_count`` the
smallest loses nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, get_args

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
    "videos": [[("video", 0)], [], [("video", 0)] * 2, [("image", 0), ("video", 0)]],
}
FRAMES = {"dycoke", "evs", "framefusion"}
"""Methods that compare the frames of a video, or several images of one size; a single image is refused."""
TILES = {"llava_next", "llava_onevision", "llava_next_video", "idefics3", "smolvlm"}
"""Families whose images are an overview and tiles of other sizes."""
BY_TILE = {"hiprune", "scope", "visionzip"}
"""Methods that go tile by tile, and refuse images and videos in one batch."""


def fitting(name: str, family: str) -> list[str]:
    """The kinds of samples for a method on a family."""
    return ["frames" if name in FRAMES else "images", *(["videos"] if "video" in CASES[family].variants else [])]


CELLS = [(name, family, kind) for name in methods() for family in CORE for kind in fitting(name, family)]


def is_refused(name: str, family: str, kind: str) -> bool:
    """Whether the method refuses these samples of the family; all other cells must run."""
    return False


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


def results(model: Any, run: tp.Run, inputs: Inputs, ids: list[int]) -> list[Result]:
    """One result per sample of a batch."""
    run.annotate(sample_ids=ids)
    out = model.generate(**inputs, max_new_tokens=2, output_logits=True, return_dict_in_generate=True)
    padding = (inputs["attention_mask"] == 0).sum(1).tolist()
    logits = torch.stack(out.logits, 1)
    return [
        Result([[at - padding[row] for at in stage.kept[row].tolist() if at >= 0] for stage in run.stages], logits[row])
        for row in range(len(ids))
    ]


def variants(name: str, smallest: int) -> Iterator[tp.Method]:
    """A method with original positions and half of the tokens; and in both modes with as many as the smallest sample.

    Methods with a budget of their own keep it.
    """
    method = prepared(name)
    if isinstance(method.budget, KeepRatio):
        yield method
        method = method.model_copy(update={"budget": KeepCount(tokens=smallest)})
    for positions in get_args(Positions):
        yield method.model_copy(update={"positions": positions})


@torch.no_grad()
def refusal(method: tp.Method, model: Any, batch: Batch, alone: list[Batch]) -> str:
    """Compare a batch with its samples; why it was refused, or nothing.

    Raises:
        AssertionError: A sample got something else in the batch.
    """
    refused, together = "", []
    try:
        with tp.apply(model, method) as run:
            together = results(model, run, batch.inputs, [*range(len(alone))])
    except TokenPruneError as error:
        refused = str(error)
    each: list[Result] = []
    try:
        with tp.apply(model, method) as run:
            for number, sample in enumerate(alone):
                each += results(model, run, sample.inputs, [number])
    except TokenPruneError as error:
        assert refused, f"a sample alone is refused, and its batch is not: {error}"
        return refused
    assert not refused, f"a batch is refused, and none of its samples alone: {refused}"
    for number, (ours, own) in enumerate(zip(together, each, strict=True)):
        assert ours.kept == own.kept, f"sample {number} keeps other tokens"
        worst = difference(ours.logits, own.logits)
        assert worst <= tolerance(own.logits), f"sample {number}: logits differ by {worst}"
    return ""


@pytest.mark.each("name")
@pytest.mark.parametrize(("name", "family", "kind"), CELLS)
def test_a_sample_gets_in_a_batch_what_it_gets_alone(name: str, family: str, kind: str) -> None:
    case = CASES[family]
    for method in variants(name, smallest=sum(case.mixed(model_for(family, "original"), SAMPLES[kind][:1])[1][0].groups[0])):
        model = model_for(family, method.positions)
        batch, alone = case.mixed(model, SAMPLES[kind], seed=3)
        assert bool(refusal(method, model, batch, alone)) == is_refused(name, family, kind)
