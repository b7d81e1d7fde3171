"""PriorTR's score against a literal sum over heads, rows and tokens, in float64."""

from __future__ import annotations

import math
from itertools import chain
from typing import Any

import pytest
import torch
from torch import Tensor

import tokenprune as tp
from tests.support.literal import Recording, record
from tests.support.matrix import model_of
from tests.support.tiny import CASES
from tokenprune.budgets.base import Schedule
from tokenprune.budgets.layer_average import layer_average
from tokenprune.errors import ScoreError
from tokenprune.pruners.topk import TopK
from tokenprune.scorers.priortr import PriorTR
from tokenprune.testing import make_context


def mean_over_heads(weights: Tensor, rows: list[int], column: int) -> float:
    """Attention to a token, summed row by row and head by head; weights ``[heads, rows, rows]``."""
    total = 0.0
    for row in rows:
        for head in range(len(weights)):
            total += float(weights[head, row, column])
    return total / (len(rows) * len(weights))


def literal(
    weights: Tensor, images: list[list[int]], real: list[int], question: str, skip: int
) -> list[dict[int, float]]:
    """The scores of each image's tokens by their rows.

    Args:
        weights: Attention, ``[heads, rows, rows]``.
        images: Rows of each image's tokens.
        real: All rows that are no padding, in order.
        question: As the field.
        skip: As the field.
    """
    end = max(max(image) for image in images)
    asking = [real[-1]] if question == "last" else [row for row in real if row > end]
    found = []
    for image in images:
        behind = [row for row in real if row > max(image)][skip]
        p = {token: mean_over_heads(weights, asking, token) for token in image}
        q = {token: mean_over_heads(weights, [behind], token) for token in image}
        p_sum, q_sum = sum(p.values()) + 1e-10, sum(q.values()) + 1e-10
        found.append({t: p[t] / p_sum * math.log((p[t] / p_sum + 1e-10) / (q[t] / q_sum + 1e-10)) for t in image})
    return found


def best(scores: dict[int, float], count: int) -> list[int]:
    """The tokens with the highest scores; ties go to the earlier one."""
    return sorted(sorted(scores, key=lambda token: (-scores[token], token))[:count])


def method(**fields: Any) -> dict[str, Any]:
    return {
        "layers": {"name": "fixed", "layers": [2]},
        "pruner": {"name": "topk", "scorer": {"name": "priortr", **fields}},
        "budget": {"name": "keep_count", "tokens": 7},
    }


def attention_of(recording: Recording) -> Tensor:
    """Attention of layer 1 as the eager implementation returns it, ``[batch, heads, rows, rows]``, float64."""
    recording.model.set_attn_implementation("eager")
    with torch.no_grad():
        weights: Tensor = recording.model(**recording.inputs, output_attentions=True).attentions[1].double()
    recording.model.set_attn_implementation("sdpa")
    return weights


@pytest.mark.parametrize("fields", [{}, {"question": "last"}, {"skip": 1}])
@pytest.mark.parametrize("padding", ["none", "left", "right"])
@pytest.mark.parametrize(
    ("name", "variant"),
    [("llava", "image"), ("llava", "ragged"), ("qwen2_5_vl", "ragged"), ("internvl", "multi"), ("gemma3", "multi")],
)
def test_the_engine_keeps_what_the_definition_says(name: str, variant: Any, padding: Any, fields: Any) -> None:
    """Ragged batches of prompts with several images, of different sizes for Qwen, each with a token of its own."""
    recording = record(name, variant, padding, batch=3)
    weights = attention_of(recording)
    question, skip = fields.get("question", "all"), fields.get("skip", 0)
    expected = []
    for sample, images in enumerate(recording.image_positions):
        real = recording.inputs["attention_mask"][sample].nonzero()[:, 0].tolist()
        scores = literal(weights[sample], images, real, question, skip)
        kept = [best(*pair) for pair in zip(scores, recording.quotas(sample, 7), strict=True)]
        expected.append(sorted(chain.from_iterable(kept)))
    assert recording.kept(method(**fields)) == expected


def causal(query: Tensor, key: Tensor, real: Tensor) -> Tensor:
    """Causal attention, ``[batch, heads, rows, rows]``, float64."""
    logits = torch.einsum("bqhd,bkhd->bhqk", query.double(), key.double()) * query.shape[-1] ** -0.5
    seen = torch.ones(logits.shape[-2:], dtype=torch.bool).tril() & real[:, None, None]
    return logits.masked_fill(~seen, float("-inf")).softmax(-1)


@pytest.mark.parametrize("question", ["all", "last"])
@pytest.mark.parametrize("seed", range(4))
def test_plain_tensors(seed: int, question: Any) -> None:
    """Samples padded on the left, on the right, and with a long text; two images of them touch."""
    noise = torch.Generator().manual_seed(seed)
    rows = 100
    images = torch.full((3, rows), -1)
    images[0, 30:40], images[0, 43:50] = 0, 1
    images[1, 0:3], images[1, 3:9], images[1, 12] = 0, 1, 2
    images[2, 1:20] = 0
    real = torch.ones(3, rows, dtype=torch.bool)
    real[0, :25], real[1, 90:] = False, False
    query, key = (2 * torch.randn(3, rows, 2, 5, generator=noise) for _ in range(2))
    sizes = [[10, 7], [3, 6, 1], [19]]
    for keep in ([[1, 1], [1, 1, 1], [1]], [[4, 3], [2, 5, 1], [10]], sizes):
        ctx = make_context(
            torch.zeros(3, rows, 4), images >= 0, images=images.clamp(min=0), keep=keep, row_mask=real,
            query=query, key=key, needs={"attention", "query", "key"},
        )  # fmt: skip
        kept = TopK(scorer=PriorTR(question=question)).select(ctx).keep
        scores = PriorTR(question=question).checked(ctx)
        for sample, weights in enumerate(causal(query, key, real)):
            places = [(images[sample] == n).nonzero()[:, 0].tolist() for n in range(len(sizes[sample]))]
            expected = literal(weights, places, real[sample].nonzero()[:, 0].tolist(), question, 0)
            flat = {row: score for image in expected for row, score in image.items()}
            wanted = sorted(chain.from_iterable(map(best, expected, keep[sample])))
            assert ctx.positions[sample][kept[sample]].tolist() == wanted
            for index, row in enumerate(sorted(flat)):
                assert float(scores[sample, index]) == pytest.approx(flat[row], abs=1e-5)


def test_tokens_that_were_left_out_are_not_behind_the_image() -> None:
    """A pool hands on some tokens: what is behind the image stays the text, and the shares are those of the pool."""
    noise = torch.Generator().manual_seed(0)
    visual = torch.zeros(1, 12, dtype=torch.bool)
    visual[:, 2:8] = True
    query, key = (torch.randn(1, 12, 2, 4, generator=noise) for _ in range(2))
    ctx = make_context(torch.zeros(1, 12, 4), visual, query=query, key=key)
    picked = torch.tensor([[True, False, True, True, False, False]])
    inner, index = ctx.among(picked, [[3]])
    expected = literal(causal(query, key, visual | ~visual)[0], [[2, 4, 5]], list(range(12)), "all", 0)[0]
    # rows 6 and 7 belong to no token of the pool, and to no question
    asked = literal(causal(query, key, visual | ~visual)[0], [[2, 4, 5]], [0, 1, 2, 4, 5, 8, 9, 10, 11], "all", 0)[0]
    scores = PriorTR().checked(inner)[0]
    assert index[0, :3].tolist() == [0, 2, 3]
    assert scores[:3].tolist() == pytest.approx(list(asked.values()), abs=1e-6)
    assert scores[:3].tolist() != pytest.approx(list(expected.values()), abs=1e-6)


def test_equal_scores_keep_the_earlier_position() -> None:
    """The token behind the image is the last one: P is Q, and every score is 0."""
    visual = torch.tensor([[False, True, True, True, True, False]])
    states = torch.randn(1, 6, 1, 4, generator=torch.Generator().manual_seed(0))
    ctx = make_context(torch.zeros(1, 6, 4), visual, keep=2, query=states, key=states)
    assert PriorTR().checked(ctx).tolist() == [[0.0] * 4]
    assert TopK(scorer=PriorTR()).select(ctx).keep.tolist() == [[True, True, False, False]]


@pytest.mark.parametrize(("skip", "text", "words"), [(0, 0, "no token behind"), (2, 2, "no 3 tokens behind")])
@torch.no_grad()
def test_a_prompt_that_ends_with_an_image_is_an_error(skip: int, text: int, words: str) -> None:
    case, model = CASES["llava"], model_of("llava", "sdpa")
    inputs = dict(case.batch(model, 2, "none").inputs)
    end = int((inputs["input_ids"] == 150).nonzero()[:, 1].max()) + 1 + text
    for name in ("input_ids", "attention_mask"):
        inputs[name] = inputs[name][:, :end]
    with (
        pytest.raises(ScoreError, match=f"sample . has {words} an image"),
        tp.apply(model, tp.Method.from_dict(method(skip=skip))),
    ):
        model(**inputs)


def test_published_settings_and_their_layer_averages() -> None:
    """The figures of the note: what is called 192, 128 and 64 is 228, 170 and 112 on average."""
    made = tp.load_method("priortr", model="LLaVA-1.5-7B")
    assert made.pruner == TopK(scorer=PriorTR())
    averages = [layer_average(576, (count,), Schedule((3,), 32)) for count in (192, 128, 64)]
    assert averages == [228, 170, 112]
    assert tp.load_method("priortr", model="InternVL2.5-8B").pruner == TopK(scorer=PriorTR(skip=1))
    assert tp.load_method("priortr", model="LLaVA-1.6-Vicuna-7B").pruner == TopK(scorer=PriorTR(question="last"))
