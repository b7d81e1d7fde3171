"""Renumbered positions of videos whose time axis runs past the text behind them (M-RoPE).

The decoder on the shortened prompt itself says what is right (:mod:`tests.support.shortened`).
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import tokenprune as tp
from tests.engine.test_renumber import renumbered
from tests.support import matrix
from tests.support.matrix import generate, model_of
from tests.support.oracle import Inputs, tolerance
from tests.support.shortened import shortened_logits
from tests.support.tiny import CASES
from tests.support.tiny.core import CACHE, TRANSFORMERS, Sized

MROPE = ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"]
LONG: list[list[Sized]] = [
    [("video", 1)],
    [("image", 1), ("video", 2)],
    [("video", 1), ("image", 0), ("video", 0)],
    [],
    [("video", 0)],
]
"""The time axis of the first three runs past the text behind it; the last two lose nothing to a budget of 40 tokens."""
SECONDS = {"qwen2_5_vl": torch.tensor([2.0, 3.0, 1.0, 2.0, 4.0])}
"""Seconds per grid of each video, where the family reads them."""
KEPT = {"name": "keep_count", "tokens": 40}


def long_videos(name: str) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
    """A batch of LONG, padded on the left, and each sample alone."""
    batch, alone = CASES[name].mixed(model_of(name, "sdpa"), LONG, seed=1)
    together, each = dict(batch.inputs), [dict(sample.inputs) for sample in alone]
    if name in SECONDS:
        together["second_per_grid_ts"] = SECONDS[name]
        videos = [sum(kind == "video" for kind, _ in sample) for sample in LONG]
        for inputs, seconds in zip(each, SECONDS[name].split(videos), strict=True):
            if len(seconds):
                inputs["second_per_grid_ts"] = seconds
    return together, each


def kept_alone(run: Any, row: int, width: int, alone: Inputs) -> Tensor:
    """What the first stage kept of a row of the batch, in positions of the sample alone."""
    kept = run.stages[0].kept[row]
    return kept[kept >= 0] - (width - alone["input_ids"].shape[1])


def check_shortened(name: str, run: Any, ours: Tensor, sequences: Tensor, each: list[dict[str, Tensor]]) -> None:
    """Every row's logits are the decoder's on the shortened prompt; rows are copies of samples, in their order."""
    model, copies = model_of(name, "sdpa"), len(ours) // len(each)
    width = sequences.shape[1] - ours.shape[1]
    for row, (logits, generated) in enumerate(zip(ours, sequences[:, width:], strict=True)):
        alone = each[row // copies]
        kept = kept_alone(run, row, width, alone)
        expected = shortened_logits(model, CASES[name], alone, generated, kept)
        assert matrix.difference(logits, expected[-len(logits) :]) <= tolerance(expected), row


MODES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "no cache": {"use_cache": False},
    "returned": {"do_sample": True, "num_return_sequences": 2},
    "chunks": {},
}


@pytest.mark.each("mode")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", MROPE)
@torch.no_grad()
def test_a_video_whose_time_runs_past_the_text(name: str, mode: str) -> None:
    """Every step of every way to generate, beside samples that lose nothing."""
    if mode == "chunks" and TRANSFORMERS < (5, 23):
        pytest.skip("this version of transformers cannot encode videos before the chunks")
    model: Any = model_of(name, "sdpa")
    inputs, each = long_videos(name)
    width = inputs["input_ids"].shape[1]
    more = {"prefill_chunk_size": width - 2} if mode == "chunks" else MODES[mode]
    with tp.apply(model, renumbered([0], KEPT)) as run:
        out = generate(model, inputs, **more)
    assert run.stages[0].after == [count for count in (40, 40, 40, 0, 12) for _ in range(len(out.sequences) // 5)]
    check_shortened(name, run, torch.stack(out.logits, 1), out.sequences, each)


@pytest.mark.parametrize("name", MROPE)
@torch.no_grad()
def test_beams_over_a_video_whose_time_runs_past_the_text(name: str) -> None:
    """A beam's score is the sum of the log-probabilities on the shortened prompt."""
    model: Any = model_of(name, "sdpa")
    inputs, each = long_videos(name)
    width = inputs["input_ids"].shape[1]
    with tp.apply(model, renumbered([0], KEPT)) as run:
        out = generate(model, inputs, num_beams=3, num_return_sequences=2, output_scores=True, length_penalty=0.0)
    for row, (tokens, score) in enumerate(zip(out.sequences[:, width:], out.sequences_scores, strict=True)):
        alone = each[row // 2]
        kept = kept_alone(run, 3 * (row // 2), width, alone)
        expected = shortened_logits(model, CASES[name], alone, tokens, kept)
        taken = expected.log_softmax(-1).gather(1, tokens[:, None]).sum()
        assert abs(float(score - taken)) <= matrix.STEPS * tolerance(expected)


def conversation(model: Any, inputs: Inputs) -> tuple[Any, Tensor]:
    """Two turns of `generate`; the second is padded in front in the first sample. Returns it, and its mask."""
    more = torch.randint(3, 100, (len(inputs["input_ids"]), 4), generator=torch.Generator().manual_seed(0))
    first = generate(model, inputs)
    turn = torch.cat([first.sequences, more], 1)
    answered = torch.ones_like(turn[:, inputs["input_ids"].shape[1] :])
    mask = torch.cat([inputs["attention_mask"], answered], 1)
    mask[0, -4:-2] = 0
    second = {"input_ids": turn, "attention_mask": mask, CACHE: first[CACHE]}
    return generate(model, second), mask


@pytest.mark.parametrize("name", MROPE)
@torch.no_grad()
def test_a_conversation_about_a_video_whose_time_runs_past_the_text(name: str) -> None:
    """The model goes on at the last position and one in the first turn, at the largest and one in the second."""
    model: Any = model_of(name, "sdpa")
    inputs, each = long_videos(name)
    width = inputs["input_ids"].shape[1]
    with tp.apply(model, renumbered([0], KEPT)) as run:
        ours, mask = conversation(model, inputs)
        stages = run.stages
    theirs, _ = conversation(model, inputs)
    assert torch.equal(ours.sequences[3:], theirs.sequences[3:])
    expected = torch.stack(theirs.logits, 1)
    assert matrix.difference(torch.stack(ours.logits, 1)[3:], expected[3:]) <= tolerance(expected)  # lose nothing
    for row, alone in enumerate(each[:3]):
        told = torch.cat([mask[row, width:], mask.new_ones(matrix.STEPS)]).bool()
        kept = stages[0].kept[row] - (width - alone["input_ids"].shape[1])
        logits = shortened_logits(model, CASES[name], alone, ours.sequences[row, width:][told], kept)
        assert matrix.difference(torch.stack(ours.logits, 1)[row], logits[-matrix.STEPS :]) <= tolerance(logits), row
