"""Caches that round: the pruned one differs from the oracle as the unpruned one differs from the exact cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, QuantizedCache, cache_utils

import tokenprune as tp
from tests.support import matrix
from tests.support.oracle import Inputs, Stage, decoder_layers, dropped, oracle_generate_logits
from tests.support.quanto import use_no_extension
from tests.support.tiny import CASES
from tests.support.tiny.core import CACHE
from tests.support.turns import Talk
from tokenprune.engine.cache import cache_bytes, pruned_class
from tokenprune.errors import UnsupportedFeatureError

SEEDS = range(8)
WINDOW = {"q_group_size": 16, "residual_length": 3}
"""Of the rows that are not rounded yet: all are rounded again within the steps of a test."""
BACKENDS: dict[str, dict[str, int]] = {
    "fp8": {},
    "quanto": WINDOW,
    "hqq": WINDOW | {"axis_key": 1, "axis_value": 1},
}
ROUNDED = {"fp8": "8-bit floats", "quanto": "4-bit integers", "hqq": "4-bit integers"}
NEW = pytest.mark.skipif(
    not hasattr(cache_utils, "Fp8QuantizedLayer"), reason="this transformers has no fp8 cache, and picks no beams"
)
every_backend = pytest.mark.parametrize(
    "backend", [pytest.param(name, marks=NEW if name == "fp8" else ()) for name in BACKENDS]
)
grouped = pytest.mark.parametrize("backend", ["quanto", "hqq"])


def rounding(backend: str, model: PreTrainedModel, **more: int) -> Any:
    use_no_extension()
    return QuantizedCache(backend=backend, config=model.config.get_text_config(), **BACKENDS[backend] | more)


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


@NEW
@torch.no_grad()
def test_pruning_adds_nothing_to_the_rounding_of_8_bit_floats() -> None:
    """Mean absolute differences of eight batches, teacher-forced on the same tokens; ragged and padded.

    They are not compared number by number: the one scale of a layer is that of the rows that it got.
    """
    case, model = CASES["llava"], matrix.model_of("llava", "sdpa")
    how = matrix.method([1, 2], matrix.budget_of("ragged"))
    pruned, unpruned = [], []
    for seed in SEEDS:
        inputs = case.batch(model, 3, "left", seed=seed, variant="ragged").inputs
        plain, tokens = logits(model, inputs, DynamicCache(config=model.config))
        unpruned.append((logits(model, inputs, rounding("fp8", model), tokens)[0] - plain).abs().mean())
        with tp.apply(model, how) as run:
            rounded, _ = logits(model, inputs, rounding("fp8", model), tokens)
        stages = matrix.stages_of(run)
        exact = oracle_generate_logits(model, inputs, tokens, stages, case.visual_ids, case.appended)
        pruned.append((rounded - exact).abs().mean())
    assert torch.stack(unpruned).mean() > 1e-4  # it rounds
    assert torch.stack(pruned).mean() <= 1.1 * torch.stack(unpruned).mean()


@contextmanager
def hiding(
    model: PreTrainedModel, inputs: Inputs, stages: Sequence[Stage], visual_ids: Sequence[int]
) -> Iterator[None]:
    """Inside the block, the unpruned model hides what the stages drop, in calls with a cache as well."""

    def hook(hidden: Tensor, layer: Any, args: Any, kwargs: Any) -> Any:
        mask = kwargs["attention_mask"]
        new, total = mask.shape[-2:]
        columns = torch.cat([hidden, hidden.new_zeros(len(hidden), total - hidden.shape[1])], 1)
        own = torch.eye(total, dtype=torch.bool)[-new:]  # a hidden token still sees itself
        return args, kwargs | {"attention_mask": mask & (~columns[:, None, None] | own)}

    with ExitStack() as stack:
        for index, layer in enumerate(decoder_layers(model)):
            hides = partial(hook, dropped(inputs, stages, visual_ids, index))
            stack.callback(layer.register_forward_pre_hook(hides, with_kwargs=True).remove)
        yield


@grouped
@torch.no_grad()
def test_groups_within_rows_are_rounded_as_in_the_unpruned_cache(backend: str) -> None:
    """The unpruned model with the same cache hides what was dropped: nothing else is different.

    A number in the middle between two steps may be rounded to the other one, as the last bits of both runs differ.
    """
    case, model = CASES["llava"], matrix.model_of("llava", "sdpa")
    how = matrix.method([1, 2], matrix.budget_of("ragged"))
    apart, rounding_errors = [], []
    for seed in SEEDS:
        inputs = case.batch(model, 3, "left", seed=seed, variant="ragged").inputs
        with tp.apply(model, how) as run:
            pruned, tokens = logits(model, inputs, rounding(backend, model))
        with hiding(model, inputs, matrix.stages_of(run), case.visual_ids):
            unpruned, _ = logits(model, inputs, rounding(backend, model), tokens)
            exact, _ = logits(model, inputs, DynamicCache(config=model.config), tokens)
        apart.append((pruned - unpruned).abs().mean())
        rounding_errors.append((exact - unpruned).abs().mean())
    assert torch.stack(rounding_errors).mean() > 1e-2
    assert torch.stack(apart).median() < 1e-5
    assert torch.stack(apart).mean() < 0.02 * torch.stack(rounding_errors).mean()


@NEW
@torch.no_grad()
def test_a_cut_cache_holds_the_rounded_rows_that_stay() -> None:
    case, model = CASES["llava"], matrix.model_of("llava", "sdpa")
    inputs = case.batch(model, 3, "left", variant="ragged").inputs
    held = []
    for cut in (False, True):
        with tp.apply(model, matrix.method([2], matrix.budget_of("ragged"), cut_earlier_caches=cut)) as run:
            run.annotate(sample_ids=[0, 1, 2])
            cache = rounding("fp8", model)
            model(**inputs, **{CACHE: cache})
            rows = run.stages[0].rows
        held.append([cache.layers[layer]._quantized_keys for layer in (0, 1)])
    for (whole, scale), (kept, same) in zip(*held, strict=True):
        assert scale == same
        for sample, positions in enumerate(rows):
            real = positions >= 0
            expected = whole[sample].float()[:, positions[real]]
            assert torch.equal(kept[sample].float()[:, real], expected)


@grouped
@torch.no_grad()
def test_rows_in_groups_cannot_be_cut_and_nothing_has_run(backend: str) -> None:
    case, model = CASES["llava"], matrix.model_of("llava", "sdpa")
    inputs = case.batch(model, 2, "none").inputs
    ran: list[int] = []
    hook = model.get_input_embeddings().register_forward_hook(lambda *_: ran.append(1))
    with tp.apply(model, matrix.method([2], matrix.budget_of("image"), cut_earlier_caches=True)) as run:
        with pytest.raises(
            UnsupportedFeatureError, match="cut_earlier_caches with a QuantizedCache of integers in gro"
        ):
            matrix.generate(model, inputs, **{CACHE: rounding(backend, model)})
        assert not ran
        matrix.generate(model, inputs)  # the run goes on
        assert run.stages[0].after < run.stages[0].before
    hook.remove()


@every_backend
@torch.no_grad()
def test_the_report_says_that_it_rounds_and_counts_its_bytes(backend: str) -> None:
    case, model = CASES["llava"], matrix.model_of("llava", "sdpa")
    inputs = case.batch(model, 2, "none", variant="image").inputs
    with tp.apply(model, matrix.method([1], matrix.budget_of("image"))) as run:
        model(**inputs)
        exact = run.report
        cache = rounding(backend, model)
        model(**inputs, **{CACHE: cache})
    report = run.report
    assert (report.kv_rounded, exact.kv_rounded) == (ROUNDED[backend], None)
    assert f"bytes, rounded to {ROUNDED[backend]}" in str(report)
    assert cache_bytes(cache) == report.kv_bytes
    if backend == "fp8":
        assert (4 * report.kv_bytes, 4 * report.kv_bytes_unpruned) == (exact.kv_bytes, exact.kv_bytes_unpruned)
    else:  # half a byte instead of four, and two numbers for each group of 16
        smallest, largest = 1 / 8, 1 / 8 + 2 / 16
        assert smallest < report.kv_bytes / exact.kv_bytes <= largest
        whole = report.kv_bytes_unpruned / exact.kv_bytes_unpruned
        assert abs(whole / (report.kv_bytes / exact.kv_bytes) - 1) < 0.02  # bytes of a row are whole numbers


@every_backend
@torch.no_grad()
def test_beams(backend: str) -> None:
    """Beam search with a cache that rounds so little that it writes what the exact one does."""
    case, model = CASES["llava"], matrix.model_of("llava", "sdpa")
    inputs = case.batch(model, 2, "left", variant="ragged").inputs
    picks = hasattr(cache_utils, "Fp8QuantizedLayer")  # else transformers fails in the first layer that is not pruned
    with tp.apply(model, matrix.method([1 if picks else 0], matrix.budget_of("ragged"))) as run:
        run.annotate(sample_ids=[0, 1])
        cache = rounding(backend, model, **({"nbits": 8} if backend == "hqq" else {}))
        if not picks:
            with pytest.raises(UnsupportedFeatureError, match="cannot pick beams of a cache of"):
                matrix.generate(model, inputs, num_beams=3, **{CACHE: cache})
            return
        out = matrix.generate(model, inputs, num_beams=3, **{CACHE: cache})
        exact = matrix.generate(model, inputs, num_beams=3)
    assert out.sequences.shape[1] == inputs["input_ids"].shape[1] + matrix.STEPS
    if backend == "hqq":
        assert torch.equal(out.sequences, exact.sequences)


@grouped
@torch.no_grad()
def test_a_later_turn_with_pictures(backend: str) -> None:
    """Its keys of earlier turns are rounded and unrounded ones; the scorer that reads attention sees both."""
    case, model = CASES["llava"], matrix.model_of("llava", "sdpa")
    talk = Talk.of(case, model, ["ragged", "decode", "decode", "multi", "decode"], "left")
    entries: dict[str, list[Tensor]] = {}
    for name in (backend, "exact"):
        cache = rounding(backend, model) if name == backend else DynamicCache(config=model.config.get_text_config())
        entries[name] = []
        with tp.apply(model, tp.load_method("fastv", "keep_ratio", ratio=0.5)):
            for turn in talk.turns:
                out = model(**talk.call(turn), use_cache=True, **{CACHE: cache})
                cache = out[CACHE]
                entries[name].append(out.logits[:, -1])
    for rounded, exact in zip(entries[backend], entries["exact"], strict=True):
        assert (rounded - exact).abs().max() < 0.25 * exact.abs().max()
    assert not torch.equal(entries[backend][-1], entries["exact"][-1])


@every_backend
@torch.no_grad()
def test_what_transformers_cannot_do_with_what_is_rounded_is_refused(backend: str) -> None:
    case, model = CASES["llava"], matrix.model_of("llava", "sdpa")
    inputs = case.batch(model, 1, "none").inputs
    with tp.apply(model, matrix.method([0], matrix.budget_of("image"))):
        cache = rounding(backend, model)
        model(**inputs, **{CACHE: cache})
        model(input_ids=torch.tensor([[5]]), **{CACHE: cache})
        layer = cache.layers[0]
        with pytest.raises(UnsupportedFeatureError, match=f"a crop of a cache of {ROUNDED[backend]}"):
            layer.crop(-1)
        with pytest.raises(UnsupportedFeatureError, match=f"cannot pick samples of a cache of {ROUNDED[backend]}"):
            layer.batch_select_indices(torch.tensor([0]))
        with pytest.raises(UnsupportedFeatureError, match=f"cannot repeat samples of a cache of {ROUNDED[backend]}"):
            layer.batch_repeat_interleave(2)


@NEW
@grouped
def test_the_keys_of_beams_that_were_just_picked(backend: str) -> None:
    """The layer picks what is rounded at its next step only; a scorer that reads attention gets the picked ones."""
    layer = rounding(backend, matrix.model_of("llava", "sdpa")).layers[0]
    states = torch.randn(3, 2, 9, 16, generator=torch.Generator().manual_seed(0))
    layer.update(states[:, :, :8], states[:, :, :8])
    layer.update(states[:, :, 8:], states[:, :, 8:])
    layer.reorder_cache(torch.tensor([2, 0, 0]))
    stored = pruned_class(layer).stored_keys(layer, 9)
    returned, _ = layer.update(states[:, :, :1], states[:, :, :1])
    assert torch.equal(stored, returned[:, :, :9])


@every_backend
def test_the_keys_of_earlier_turns_are_those_that_attention_gets(backend: str) -> None:
    layer = rounding(backend, matrix.model_of("llava", "sdpa")).layers[0]
    states = torch.randn(3, 2, 9, 16, generator=torch.Generator().manual_seed(0))
    layer.update(states[:, :, :8], states[:, :, :8])
    stored = pruned_class(layer).stored_keys(layer, 8)
    returned, _ = layer.update(states[:, :, 8:], states[:, :, 8:])
    assert torch.equal(stored, returned[:, :, :8])
    assert not torch.equal(stored, states[:, :, :8])  # they were rounded
