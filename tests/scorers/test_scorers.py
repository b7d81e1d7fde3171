"""Scorers through the engine, against literal definitions on signals recorded by hooks of the test's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import tokenprune as tp
from tests.ops.test_entropy import literal
from tests.support.tiny import CASES
from tokenprune.scorers.fastv import FastV
from tokenprune.scorers.matrix_entropy import MatrixEntropy
from tokenprune.scorers.norm import Norm
from tokenprune.testing import make_context

FAMILIES = ["llava", "qwen2_5_vl", "qwen3_vl", "gemma3", "paligemma", "internvl", "smolvlm", "mistral3"]


def kept_by(model: Any, inputs: dict[str, Tensor], scorer: Any, tokens: int = 5) -> list[list[int]]:
    method = tp.Method(
        layers={"name": "fixed", "layers": [2]},
        pruner={"name": "topk", "scorer": scorer},
        budget={"name": "keep_count", "tokens": tokens},
    )
    with torch.no_grad(), tp.apply(model, method) as run:
        model(**inputs)
    return [[int(p) for p in row if p >= 0] for row in run.stages[0].kept]


def best(scores: dict[int, float], count: int) -> list[int]:
    """The positions of the highest scores; ties go to the earlier position."""
    return sorted(sorted(scores, key=lambda position: (-scores[position], position))[:count])


def recorded(model: Any, inputs: dict[str, Tensor], module: Any) -> Tensor:
    seen: list[Tensor] = []
    hook = module.register_forward_hook(lambda m, a, output: seen.append(output))
    with torch.no_grad():
        model(**inputs)
    hook.remove()
    return seen[0]


@pytest.mark.parametrize("queries", [1, 4])
@pytest.mark.parametrize("padding", ["none", "left"])
@pytest.mark.parametrize("name", FAMILIES)
def test_fastv_is_the_last_rows_of_the_attention_map(name: str, padding: Any, queries: int) -> None:
    """Against the full attention weights that the eager implementation returns for layer 1."""
    case = CASES[name]
    model = case.build("eager")
    batch = case.batch(model, 2, padding, seed=2)
    with torch.no_grad():
        weights = model(**batch.inputs, output_attentions=True).attentions[1]
    tokens = min(5, sum(batch.groups[0]) - 1)
    for attention in ("eager", "sdpa"):
        model.set_attn_implementation(attention)
        found = kept_by(model, batch.inputs, FastV(queries=queries), tokens)
        for sample in range(2):
            visual = (
                torch.isin(batch.inputs["input_ids"][sample], torch.tensor(case.visual_ids)).nonzero()[:, 0].tolist()
            )
            row = weights[sample, :, -queries:].double().mean((0, 1))
            assert found[sample] == best({p: float(row[p]) for p in visual}, tokens)


def test_more_queries_than_tokens_are_all_tokens() -> None:
    """Two samples of unequal length: padding has no attention row."""
    noise = torch.Generator().manual_seed(0)
    hidden, states = torch.zeros(2, 6, 4), torch.randn(2, 6, 2, 4, generator=noise)
    real = torch.tensor([[False] * 3 + [True] * 3, [True] * 6])
    visual = torch.tensor([[False] * 3 + [True, True, False], [True] * 5 + [False]])
    scores = [
        FastV(queries=queries).score(make_context(hidden, visual, row_mask=real, query=states, key=states))
        for queries in (3, 5, 9)
    ]
    assert all(bool(score.isfinite().all()) for score in scores)
    assert torch.equal(scores[0][0, :2], scores[1][0, :2])
    assert torch.equal(scores[1][0, :2], scores[2][0, :2])
    assert not torch.equal(scores[0][1], scores[1][1])


@pytest.mark.parametrize("normalization", ["trace", "none"])
@pytest.mark.parametrize("source", ["query", "key", "value", "hidden"])
def test_matrix_entropy_scores_the_source_it_names(source: str, normalization: str) -> None:
    case = CASES["llava"]
    model = case.build()
    inputs = case.batch(model, 2, "left", seed=2).inputs
    layer = model.get_decoder().layers[1]
    heads = 4 if source in ("query", "hidden") else 2
    module = layer if source == "hidden" else getattr(layer.self_attn, f"{source[0]}_proj")
    states = recorded(model, inputs, module).unflatten(-1, (heads, -1))
    found = kept_by(model, inputs, MatrixEntropy(source=source, normalization=normalization))
    for sample in range(2):
        visual = (inputs["input_ids"][sample] == 150).nonzero()[:, 0].tolist()
        scores = {p: literal(states[sample, p], normalization == "trace") for p in visual}
        if heads == 2 and normalization == "trace":
            continue  # two heads always have entropy 0: nothing to rank
        assert found[sample] == best(scores, 5)


@pytest.mark.parametrize("keep", ["large", "small"])
@pytest.mark.parametrize("source", ["query", "key", "value", "hidden"])
def test_norms_are_norms(source: str, keep: str) -> None:
    case = CASES["llava"]
    model = case.build()
    inputs = case.batch(model, 2, "none", seed=2).inputs
    layer = model.get_decoder().layers[1]
    states = recorded(model, inputs, layer if source == "hidden" else getattr(layer.self_attn, f"{source[0]}_proj"))
    found = kept_by(model, inputs, Norm(source=source, keep=keep))
    sign = 1 if keep == "large" else -1
    for sample in range(2):
        visual = (inputs["input_ids"][sample] == 150).nonzero()[:, 0].tolist()
        scores = {p: sign * sum(float(v) ** 2 for v in states[sample, p]) ** 0.5 for p in visual}
        assert found[sample] == best(scores, 5)


def test_query_norms_of_qwen3_are_read_behind_its_normalisation() -> None:
    """Qwen3-VL normalises queries per head before rotary embedding: those are the query states."""
    case = CASES["qwen3_vl"]
    model = case.build()
    inputs = case.batch(model, 2, "none", seed=2).inputs
    attention = model.get_decoder().layers[1].self_attn
    states = recorded(model, inputs, attention.q_norm)
    found = kept_by(model, inputs, MatrixEntropy())
    for sample in range(2):
        visual = (inputs["input_ids"][sample] == 150).nonzero()[:, 0].tolist()
        assert found[sample] == best({p: literal(states[sample, p], True) for p in visual}, 5)


def test_random_seeds_differ_and_repeat() -> None:
    case = CASES["llava"]
    model = case.build()
    inputs = case.batch(model, 2, "none", seed=2).inputs
    first, again, other = (kept_by(model, inputs, {"name": "random", "seed": seed}) for seed in (0, 0, 1))
    assert first == again
    assert first != other
