"""The contract matrix of the engine: its cells, and one run of a cell judged by the oracle."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

import tokenprune as tp
from tests.support.oracle import (
    Inputs,
    Stage,
    decoder_layers,
    dropped,
    masked,
    oracle_generate_logits,
    oracle_logits,
    tolerance,
)
from tests.support.tiny import CASES, CORE, TinyCase
from tests.support.tiny.core import TRANSFORMERS, Padding, Variant

Layer = Literal["0", "1", "middle", "last"]
Mode = Literal["forward", "greedy", "sample", "beam", "no cache"]
STEPS = 5
BF16 = 4e-2
"""bf16 has 8 bits: the two ways to sum one attention row may differ by a few of them (per unit of largest logit)."""
ONE_IMAGE_BEAMS = TRANSFORMERS < (5, 23)
"""Older versions repeat pixels image by image, not sample by sample: beams of several images get each other's."""


@dataclass(frozen=True)
class Cell:
    """One point of the matrix. `variant` "image" keeps equally many tokens of each sample, "ragged" does not."""

    family: str
    attention: str = "sdpa"
    padding: Padding = "none"
    variant: Variant = "image"
    layer: Layer = "middle"
    mode: Mode = "greedy"
    dtype: torch.dtype = torch.float32
    cut: bool = False

    def __str__(self) -> str:
        words = [self.family, self.attention, self.padding, self.variant, f"layer {self.layer}", self.mode]
        return "-".join([*words, *(["bf16"] if self.dtype == torch.bfloat16 else []), *(["cut"] if self.cut else [])])


@dataclass(frozen=True)
class Judged:
    """The largest difference from the oracle, and the tolerance."""

    worst: float
    allowed: float


@lru_cache(maxsize=2 * len(CORE))
def model_of(family: str, attention: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The tiny model. Tests share it, because the engine leaves no trace on it."""
    return CASES[family].build(attention, dtype=dtype)


def layer_number(model: PreTrainedModel, layer: Layer) -> int:
    """The number of a layer, by its name."""
    count = len(decoder_layers(model))
    return {"0": 0, "1": 1, "middle": count // 2, "last": count - 1}[layer]


def method(layers: list[int], budget: dict[str, Any], **fields: Any) -> Any:
    """A method that prunes before `layers` by a seeded random score; other fields of the method by name."""
    return tp.Method(
        layers={"name": "fixed", "layers": layers},
        pruner={"name": "topk", "scorer": {"name": "random", "seed": 0}},
        budget=budget,
        **fields,
    )


def budget_of(variant: Variant) -> dict[str, Any]:
    """A count for equal samples, a ratio for the others."""
    return {"name": "keep_count", "tokens": 5} if variant == "image" else {"name": "keep_ratio", "ratio": 0.33}


def stages_of(run: Any) -> list[Stage]:
    """The tokens that the engine reports as kept, as stages of the oracle."""
    return [(stage.layer, stage.kept.cpu()) for stage in run.stages]


def run_cell(cell: Cell) -> Judged:
    """Run one cell under the engine and judge it."""
    if cell.mode == "beam" and ONE_IMAGE_BEAMS:
        cell = replace(cell, variant="image")
    case = CASES[cell.family]
    model = model_of(cell.family, cell.attention, cell.dtype)
    inputs = case.batch(model, 3, cell.padding, seed=1, variant=cell.variant).inputs
    how = method([layer_number(model, cell.layer)], budget_of(cell.variant), cut_earlier_caches=cell.cut)
    judge = {"forward": judge_forward, "beam": judge_beam, "no cache": judge_no_cache}.get(cell.mode, judge_steps)
    return judge(cell, case, model, inputs, how)


@torch.no_grad()
def judge_forward(cell: Cell, case: TinyCase, model: PreTrainedModel, inputs: Inputs, how: Any) -> Judged:
    """All rows of a plain forward: the kept tokens' logits, in order, at the end of each sample's rows."""
    with tp.apply(model, how) as run:
        ours = model(**inputs).logits
    stages = checked_stages(run, inputs, case)
    full = oracle_logits(model, inputs, stages, case.visual_ids)
    gone = dropped(inputs, stages, case.visual_ids, layer=10**6)
    worst = 0.0
    for b in range(len(ours)):
        rows = (~gone[b]).nonzero()[:, 0]
        real = inputs["attention_mask"][b, rows].bool()
        worst = max(worst, difference(ours[b, -len(rows) :][real], full[b, rows[real]]))
    return Judged(worst, allowed(cell, full))


@torch.no_grad()
def judge_steps(cell: Cell, case: TinyCase, model: PreTrainedModel, inputs: Inputs, how: Any) -> Judged:
    """Every step of greedy or sampled generation, teacher-forced."""
    with tp.apply(model, how) as run:
        out = generate(model, inputs, do_sample=cell.mode == "sample")
    stages = checked_stages(run, inputs, case)
    generated = out.sequences[:, -STEPS:]
    assert torch.equal(out.sequences[:, :-STEPS], inputs["input_ids"])
    expected = oracle_generate_logits(model, inputs, generated, stages, case.visual_ids, case.appended, cell.cut)
    return Judged(difference(torch.stack(out.logits, 1), expected), allowed(cell, expected))


@torch.no_grad()
def judge_beam(cell: Cell, case: TinyCase, model: PreTrainedModel, inputs: Inputs, how: Any) -> Judged:
    """Beam search gives the sequences and scores that it gives on the masked model without a cache."""
    beams = {"num_beams": 3, "output_scores": True}
    with tp.apply(model, how) as run:
        ours = generate(model, inputs, **beams)
    cut_at = [inputs["input_ids"].shape[1]] * cell.cut
    stages = checked_stages(run, inputs, case)
    with masked(model, inputs, stages, case.visual_ids, *cut_at), suffixed(model, case, inputs):
        theirs = generate(model, inputs, use_cache=False, **beams)
    if cell.dtype == torch.float32:
        assert torch.equal(ours.sequences, theirs.sequences), "another beam won"
    return Judged(difference(ours.sequences_scores, theirs.sequences_scores), allowed(cell, theirs.sequences_scores))


@torch.no_grad()
def judge_no_cache(cell: Cell, case: TinyCase, model: PreTrainedModel, inputs: Inputs, how: Any) -> Judged:
    """Without a cache every step prunes anew; the masked model generates the same."""
    with tp.apply(model, how) as run:
        ours = generate(model, inputs, use_cache=False)
    with masked(model, inputs, checked_stages(run, inputs, case), case.visual_ids):
        theirs = generate(model, inputs, use_cache=False)
    if cell.dtype == torch.float32:
        assert torch.equal(ours.sequences, theirs.sequences)
    expected = torch.stack(theirs.logits, 1)
    return Judged(difference(torch.stack(ours.logits, 1), expected), allowed(cell, expected))


@contextmanager
def suffixed(model: PreTrainedModel, case: TinyCase, inputs: Inputs) -> Iterator[None]:
    """While open, generated tokens have the family's `appended` types (without a cache, `generate` has others)."""
    length = inputs["input_ids"].shape[1]

    def retype(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        for name, value in case.appended.items():
            kwargs[name] = kwargs[name].clone()
            kwargs[name][:, length:] = value
        return args, kwargs

    hook = model.register_forward_pre_hook(retype, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()


def generate(model: PreTrainedModel, inputs: Inputs, **more: Any) -> Any:
    """Seeded `generate` of STEPS tokens, with logits."""
    torch.manual_seed(0)
    return model.generate(**inputs, max_new_tokens=STEPS, output_logits=True, return_dict_in_generate=True, **more)


def difference(ours: Tensor, theirs: Tensor) -> float:
    """The largest absolute difference; NaN counts as infinite."""
    return float((ours - theirs).abs().nan_to_num(nan=float("inf")).max())


def allowed(cell: Cell, expected: Tensor) -> float:
    """Tolerance of the difference from `expected`."""
    if cell.dtype == torch.bfloat16:
        return BF16 * max(1.0, float(expected.abs().max()))
    return CASES[cell.family].slack * tolerance(expected)


def checked_stages(run: Any, inputs: Inputs, case: TinyCase) -> list[Stage]:
    """The run's stages, after checks of their form: ascending, padded with -1 at the end, counts as reported."""
    stages = stages_of(run)
    assert stages, "no stage reported"
    visual = torch.isin(inputs["input_ids"], torch.tensor(case.visual_ids))
    visual = visual.repeat_interleave(len(stages[0][1]) // len(visual), 0)
    for stage, (_, kept) in zip(run.stages, stages, strict=True):
        counts = (kept >= 0).sum(1)
        assert kept.dtype == torch.long
        assert list(stage.after) == counts.tolist()
        assert counts.sum() < visual.sum(), "nothing was pruned"
        for row, count in zip(kept, counts, strict=True):
            assert (row[count:] == -1).all()
            assert (row[:count].diff() > 0).all()
    assert list(run.stages[0].before) == visual.sum(1).tolist()
    return stages


def cells(families: list[str], thin: bool = False) -> list[Cell]:
    """Every pair of values of any two factors for every family.

    Args:
        families: The families.
        thin: Two of the four layers, and one variant with several images.
    """
    out = []
    for name in families:
        attentions, paddings, variants, layers, modes = factors(CASES[name])
        if thin:
            variants, layers = tuple(v for v in variants if v != "multi"), ("0", "middle")
        out += [Cell(name, *values) for values in covering((attentions, paddings, variants, layers, modes), 2)]
    return out


def triples(family: str) -> list[Cell]:
    """Every three values of any three factors for one family."""
    return [Cell(family, *values) for values in covering(factors(CASES[family]), 3)]


def factors(case: TinyCase) -> tuple[tuple[Any, ...], ...]:
    """The values of attention, padding, variant, layer and mode that a family has."""
    variants = tuple(v for v in case.variants if v != "text")
    modes = tuple(m for m in get_args(Mode) if case.beams or m != "beam") if case.generates else ("forward",)
    return case.attentions, ("none", "left"), variants, get_args(Layer), modes


@lru_cache
def covering(values: tuple[tuple[Any, ...], ...], strength: int) -> list[tuple[Any, ...]]:
    """Few combinations that hold all values of any ``strength`` factors: always the one that adds most, in order."""

    def of(combination: tuple[Any, ...]) -> set[Any]:
        return set(itertools.combinations(enumerate(combination), strength))

    everything = {c: of(c) for c in itertools.product(*values)}
    missing = set().union(*everything.values())
    out = []
    while missing:
        best = max(everything, key=lambda c: len(everything[c] & missing))
        out.append(best)
        missing -= everything[best]
    return out
