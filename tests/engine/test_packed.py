"""Several samples in one row, told apart by their positions alone, are pruned as in a padded batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import tokenprune as tp
from tests.support.matrix import model_of
from tests.support.tiny import CASES
from tokenprune.scorers.base import Scorer
from tokenprune.signals.context import PruneContext

TOKENS = 16
"""Visual tokens of an image of the tiny LLaVA and Qwen2-VL."""


class ByPlace(Scorer):
    """A score by the token's place in its image, so that both ways to lay samples out drop the same tokens."""

    @property
    def needs(self) -> frozenset[str]:
        """No signal of the model."""
        return frozenset()

    def score(self, ctx: PruneContext) -> Tensor:
        """See :meth:`tokenprune.scorers.base.Scorer.score`."""
        table = torch.rand(TOKENS, generator=torch.Generator().manual_seed(7))
        place = torch.arange(ctx.visual_mask.shape[1]) % TOKENS
        return table[place].expand(ctx.visual_mask.shape).clone()


HALF = tp.Method(
    layers={"name": "fixed", "layers": [2]},
    pruner={"name": "topk", "scorer": ByPlace()},
    budget={"name": "keep_ratio", "ratio": 0.5},
)


def positions_of(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    """Every token's position in its own sample: long ``[1, tokens]``, with Qwen's axes ``[4, 1, tokens]``."""
    real = inputs["attention_mask"].bool()
    text = torch.cat([torch.arange(int(count)) for count in real.sum(1)])[None]
    if model.config.model_type != "qwen2_vl":
        return text
    names = ("input_ids", "image_grid_thw", "attention_mask", "mm_token_type_ids")
    axes, _ = model.model.get_rope_index(**{name: inputs[name] for name in names})
    return torch.cat([text, axes[:, real]])[:, None]


def by_token(logits: Tensor, rows: Tensor | None, real: Tensor) -> dict[int, Tensor]:
    """The logits of each row that is left, by the number of its token among all tokens of the batch."""
    number = (real.flatten().cumsum(0) - 1).view(real.shape)
    rows = torch.arange(real.shape[1]).expand(real.shape) if rows is None else rows
    return {
        int(number[sample, position]): logits[sample, row]
        for sample, positions in enumerate(rows.tolist())
        for row, position in enumerate(positions)
        if position >= 0 and real[sample, position]
    }


def difference(one: dict[int, Tensor], other: dict[int, Tensor]) -> float:
    assert set(one) == set(other)
    return max(float((one[token] - other[token]).abs().max()) for token in one)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", ["llava", "qwen2_vl"])
@torch.no_grad()
def test_packed_samples_equal_padded_ones(family: str, attention: str) -> None:
    model = model_of(family, attention)
    padded = CASES[family].inputs(model, batch=3, left_pad=True)
    real = padded["attention_mask"].bool()
    ids = padded["input_ids"][real][None]
    packed = {
        **{name: value for name, value in padded.items() if name not in ("attention_mask", "mm_token_type_ids")},
        "input_ids": ids,
        "position_ids": positions_of(model, padded),
    }
    every = torch.ones_like(ids, dtype=torch.bool)
    unpruned = difference(
        by_token(model(**padded, use_cache=False).logits, None, real),
        by_token(model(**packed, use_cache=False).logits, None, every),
    )
    found = []
    for inputs, tokens in ((padded, real), (packed, every)):
        with tp.apply(model, HALF) as run:
            logits = model(**inputs, use_cache=False).logits
        assert sum(run.stages[0].after) == 3 * TOKENS // 2
        found.append(by_token(logits, run.stages[0].rows, tokens))
    scale = max(float(value.abs().max()) for value in found[0].values())
    assert unpruned < 1e-5 * scale, "the two ways agree without pruning"
    assert difference(*found) < 1e-5 * scale
