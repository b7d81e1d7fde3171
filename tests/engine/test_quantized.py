"""A cache of 8-bit floats: the pruned one differs from the oracle as the unpruned one differs from the exact cache."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, QuantizedCache, cache_utils

import tokenprune as tp
from tests.support import matrix
from tests.support.oracle import Inputs, oracle_generate_logits
from tests.support.tiny import CASES
from tests.support.tiny.core import CACHE
from tokenprune.engine.cache import cache_bytes
from tokenprune.errors import UnsupportedFeatureError

pytestmark = pytest.mark.skipif(
    not hasattr(cache_utils, "Fp8QuantizedLayer"), reason="this transformers has no fp8 cache"
)
SEEDS = range(8)


def fp8(model: PreTrainedModel) -> Any:
    return QuantizedCache(backend="fp8", config=model.config)


def logits(model: PreTrainedModel, inputs: Inputs, cache: Any, follow: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Logits of a greedy generation and its tokens; of given tokens if there are any."""
    out = matrix.generate(
        model, inputs, **{CACHE: cache}, **({} if follow is None else {"logits_processor": [Forced(follow)]})
    )
    return torch.stack(out.logits, 1), out.sequences[:, -matrix.STEPS :]


class Forced:
    """Lets `generate` write given tokens."""

    def __init__(self, tokens: Tensor) -> None:
        self.tokens, self.step = tokens, 0

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        forced = torch.full_like(scores, -1e9).scatter(1, self.tokens[:, self.step : self.step + 1], 0.0)
        self.step += 1
        return forced


@torch.no_grad()
def test_pruning_adds_nothing_to_the_rounding() -> None:
    """Mean absolute differences of eight batches, teacher-forced on the same tokens; ragged and padded."""
    case, model = CASES["llava"], matrix.model_of("llava", "sdpa")
    how = matrix.method([1, 2], matrix.budget_of("ragged"))
    pruned, unpruned = [], []
    for seed in SEEDS:
        inputs = case.batch(model, 3, "left", seed=seed, variant="ragged").inputs
        plain, tokens = logits(model, inputs, DynamicCache(config=model.config))
        unpruned.append((logits(model, inputs, fp8(model), tokens)[0] - plain).abs().mean())
        with tp.apply(model, how) as run:
            rounded, _ = logits(model, inputs, fp8(model), tokens)
        stages = matrix.stages_of(run)
        exact = oracle_generate_logits(model, inputs, tokens, stages, case.visual_ids, case.appended)
        pruned.append((rounded - exact).abs().mean())
    assert torch.stack(unpruned).mean() > 1e-4  # it rounds
    assert torch.stack(pruned).mean() <= 1.1 * torch.stack(unpruned).mean()


@torch.no_grad()
def test_a_cut_cache_holds_the_rounded_rows_that_stay() -> None:
    case, model = CASES["llava"], matrix.model_of("llava", "sdpa")
    inputs = case.batch(model, 3, "left", variant="ragged").inputs
    held = []
    for cut in (False, True):
        with tp.apply(model, matrix.method([2], matrix.budget_of("ragged"), cut_earlier_caches=cut)) as run:
            run.annotate(sample_ids=[0, 1, 2])
            cache = fp8(model)
            model(**inputs, **{CACHE: cache})
            rows = run.stages[0].rows
        held.append([cache.layers[layer]._quantized_keys for layer in (0, 1)])
    for (whole, scale), (kept, same) in zip(*held, strict=True):
        assert scale == same
        for sample, positions in enumerate(rows):
            real = positions >= 0
            expected = whole[sample].float()[:, positions[real]]
            assert torch.equal(kept[sample].float()[:, real], expected)


@torch.no_grad()
def test_the_report_says_that_it_rounds_and_counts_its_bytes() -> None:
    case, model = CASES["llava"], matrix.model_of("llava", "sdpa")
    inputs = case.batch(model, 2, "none", variant="image").inputs
    with tp.apply(model, matrix.method([1], matrix.budget_of("image"))) as run:
        model(**inputs)
        exact = run.report
        cache = fp8(model)
        model(**inputs, **{CACHE: cache})
    report = run.report
    assert (report.kv_rounded, exact.kv_rounded) == ("8-bit floats", None)
    assert "bytes, rounded to 8-bit floats" in str(report)
    assert (4 * report.kv_bytes, 4 * report.kv_bytes_unpruned) == (exact.kv_bytes, exact.kv_bytes_unpruned)
    assert cache_bytes(cache) == report.kv_bytes


@torch.no_grad()
def test_beams() -> None:
    case, model = CASES["llava"], matrix.model_of("llava", "sdpa")
    inputs = case.batch(model, 2, "left", variant="ragged").inputs
    with tp.apply(model, matrix.method([1], matrix.budget_of("ragged"))):
        out = matrix.generate(model, inputs, num_beams=3, **{CACHE: fp8(model)})
    assert out.sequences.shape[1] == inputs["input_ids"].shape[1] + matrix.STEPS


@torch.no_grad()
def test_a_crop_is_refused() -> None:
    case, model = CASES["llava"], matrix.model_of("llava", "sdpa")
    inputs = case.batch(model, 1, "none").inputs
    with tp.apply(model, matrix.method([0], matrix.budget_of("image"))):
        cache = fp8(model)
        model(**inputs, **{CACHE: cache})
        model(input_ids=torch.tensor([[5]]), **{CACHE: cache})
        with pytest.raises(UnsupportedFeatureError, match="a crop of a cache of 8-bit floats"):
            cache.layers[0].crop(-1)
