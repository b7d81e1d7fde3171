"""Pruned KV caches: they answer for the whole sequence, and are refused where nobody cuts the masks."""

from __future__ import annotations

import copy
import pickle
import threading
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, DynamicLayer, PreTrainedModel

import tokenprune as tp
from tests.support import matrix
from tests.support.oracle import masked, oracle_generate_logits, tolerance
from tests.support.simple import fastv, pair
from tests.support.tiny import CASES
from tests.support.tiny.core import CACHE
from tests.support.windows import wide_gemma
from tokenprune.engine.cache import PRUNED_CLASSES, cache_bytes
from tokenprune.engine.caches.dynamic import PrunedDynamicLayer
from tokenprune.engine.caches.layer import PrunedCacheLayer
from tokenprune.errors import UnsupportedFeatureError

TOKEN = torch.tensor([[5], [6]])


@pytest.mark.parametrize("family", ["llava", "gemma3"])
@pytest.mark.parametrize("variant", ["image", "ragged"])
@torch.no_grad()
def test_a_cache_after_its_block_is_refused(family: str, variant: Any) -> None:
    """Ragged batches and sliding windows would be silently wrong; equal batches are refused all the same."""
    case = CASES[family]
    model = case.build()
    inputs = case.batch(model, 2, "left", variant=variant).inputs
    with tp.apply(model, fastv(name="keep_ratio", ratio=0.4)):
        cache = model(**inputs)[CACHE]
        model(input_ids=TOKEN, **{CACHE: copy.deepcopy(cache)})
    with pytest.raises(UnsupportedFeatureError, match="block that has ended"):
        model(input_ids=TOKEN, **{CACHE: cache})
    with tp.apply(model, fastv()), pytest.raises(UnsupportedFeatureError, match="another apply block"):
        model(input_ids=TOKEN, **{CACHE: cache})


@torch.no_grad()
def test_a_generation_that_outlives_its_block_fails() -> None:
    """A thread that still generates when the block ends stops with a clear error, not with wrong tokens."""
    model, inputs = pair(variant="ragged")
    first, ended = threading.Event(), threading.Event()
    problems: list[BaseException] = []

    def wait(ids: Tensor, scores: Tensor) -> Tensor:
        if not first.is_set():
            first.set()
            ended.wait(60)
        return scores

    def run() -> None:
        try:
            model.generate(**inputs, max_new_tokens=4, logits_processor=[wait])
        except UnsupportedFeatureError as error:
            problems.append(error)

    thread = threading.Thread(target=run)
    with tp.apply(model, fastv(name="keep_ratio", ratio=0.4)):
        thread.start()
        assert first.wait(60)
    ended.set()
    thread.join()
    assert "block that has ended" in str(problems[0])


@torch.no_grad()
def test_a_pruned_cache_is_refused_by_layers_called_by_hand() -> None:
    model, inputs = pair()
    with tp.apply(model, fastv()):
        cache = model(**inputs)[CACHE]
        keys = cache.layers[1].keys[:, :, -1:]
        with pytest.raises(UnsupportedFeatureError, match="outside a call"):
            cache.layers[1].update(keys, keys)


@torch.no_grad()
def test_a_pickled_cache() -> None:
    """It can be stored and looked at; as its block is not there any more, it is not extended."""
    model, inputs = pair()
    with tp.apply(model, fastv()):
        cache = model(**inputs)[CACHE]
        loaded = pickle.loads(pickle.dumps(cache))
        assert isinstance(loaded.layers[1], PrunedCacheLayer)
        assert torch.equal(loaded.layers[1].keys, cache.layers[1].keys)
        assert loaded.get_seq_length() == inputs["input_ids"].shape[1]
        with pytest.raises(UnsupportedFeatureError, match="another apply block"):
            model(input_ids=TOKEN, **{CACHE: loaded})
    with pytest.raises(UnsupportedFeatureError, match="block that has ended"):
        model(input_ids=TOKEN, **{CACHE: loaded})


@pytest.mark.parametrize("family", ["llava", "gemma3"])
@torch.no_grad()
def test_bytes_that_were_saved(family: str) -> None:
    """The unpruned size is that of the unpruned model's cache."""
    case = CASES[family]
    model = case.build()
    inputs = case.batch(model, 2, "left").inputs
    whole = cache_bytes(model(**inputs)[CACHE])
    with tp.apply(model, fastv(name="keep_ratio", ratio=0.4)) as run:
        cache = model(**inputs)[CACHE]
    assert run.report.kv_bytes_unpruned == whole
    assert run.report.kv_bytes == cache_bytes(cache) < whole


@pytest.mark.parametrize("family", ["llava", "gemma3"])
@torch.no_grad()
def test_bytes_that_were_saved_after_some_steps(family: str) -> None:
    """A window that the prompt does not fill, and that three more tokens do."""
    case = CASES[family]
    inputs = case.batch(case.build(), 2, "none").inputs
    model = wide_gemma(inputs["input_ids"].shape[1] + 3) if family == "gemma3" else case.build()

    def after_three() -> Any:
        cache = model(**inputs)[CACHE]
        for _ in range(3):
            cache = model(input_ids=TOKEN, **{CACHE: cache})[CACHE]
        return cache

    whole = cache_bytes(after_three())
    with tp.apply(model, fastv(name="keep_ratio", ratio=0.4)):
        pruned = after_three()
    assert cache_bytes(pruned, unpruned=True) == whole > cache_bytes(pruned)


# ---- another type of cache layer ---


class DoublePrecisionLayer(DynamicLayer):
    """Stores keys and values in float64, which changes no fp32 result, and counts its updates."""

    updates = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        super().lazy_initialization(key_states.double(), value_states.double())

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        self.updates += 1
        keys, values = super().update(key_states.double(), value_states.double(), *args, **kwargs)
        return keys.to(key_states.dtype), values.to(value_states.dtype)


class PrunedDoublePrecisionLayer(PrunedDynamicLayer, DoublePrecisionLayer):  # type: ignore[misc]
    """A pruned layer in float64."""

    plain = DoublePrecisionLayer


def double_cache(model: PreTrainedModel) -> Any:
    """A cache of such layers."""
    cache = DynamicCache(config=model.config)
    cache.layers = [DoublePrecisionLayer() for _ in cache.layers]
    return cache


@pytest.fixture
def double_is_supported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PRUNED_CLASSES, DoublePrecisionLayer, PrunedDoublePrecisionLayer)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("padding", ["none", "left"])
@pytest.mark.usefixtures("double_is_supported")
@torch.no_grad()
def test_a_new_type_of_cache_layer(attention: str, padding: Any) -> None:
    """Two stages of a ragged batch are exact, and the layers stay what they are."""
    case = CASES["llava"]
    model = case.build(attention)
    inputs = case.batch(model, 3, padding, variant="ragged").inputs
    cache = double_cache(model)
    with tp.apply(model, matrix.method([1, 3], matrix.budget_of("ragged"))) as run:
        output = matrix.generate(model, inputs, **{CACHE: cache})
    generated = output.sequences[:, -matrix.STEPS :]
    expected = oracle_generate_logits(model, inputs, generated, matrix.stages_of(run), case.visual_ids)
    assert matrix.difference(torch.stack(output.logits, 1), expected) <= tolerance(expected)
    kinds = [DoublePrecisionLayer, *[PrunedDoublePrecisionLayer] * (len(cache.layers) - 1)]
    assert [type(layer) for layer in cache.layers] == kinds
    assert {layer.updates for layer in cache.layers} == {matrix.STEPS}
    assert {layer.keys.dtype for layer in cache.layers} == {torch.float64}
    with tp.apply(model, matrix.method([1, 3], matrix.budget_of("ragged"))) as plain:
        model(**inputs)
    assert run.report.kv_bytes == 2 * plain.report.kv_bytes
    assert run.report.kv_bytes_unpruned == 2 * plain.report.kv_bytes_unpruned


@pytest.mark.usefixtures("double_is_supported")
@torch.no_grad()
def test_beam_search_on_a_new_type_of_cache_layer() -> None:
    """It gives the sequences of the masked model without a cache."""
    case = CASES["llava"]
    model = case.build()
    variant: Any = "image" if matrix.ONE_IMAGE_BEAMS else "ragged"
    inputs = case.batch(model, 3, "left", variant=variant).inputs
    beams = {"num_beams": 3, "output_scores": True}
    with tp.apply(model, matrix.method([1, 3], matrix.budget_of(variant))) as run:
        ours = matrix.generate(model, inputs, **{CACHE: double_cache(model)}, **beams)
    with masked(model, inputs, matrix.stages_of(run), case.visual_ids):
        theirs = matrix.generate(model, inputs, use_cache=False, **beams)
    assert torch.equal(ours.sequences, theirs.sequences)
    assert matrix.difference(ours.sequences_scores, theirs.sequences_scores) <= tolerance(theirs.sequences_scores)


@pytest.mark.parametrize("made", ["before", "during"])
@torch.no_grad()
def test_an_unknown_type_of_cache_layer_is_refused(made: str) -> None:
    """Also where the cache makes its layers only while the model runs."""
    model, inputs = pair()
    cache = double_cache(model)
    if made == "during":
        cache = DynamicCache()
        cache.layer_class_to_replicate = DoublePrecisionLayer
    with (
        pytest.raises(UnsupportedFeatureError, match="DoublePrecisionLayer is not supported; use the default"),
        tp.apply(model, fastv()),
    ):
        model(**inputs, **{CACHE: cache})


@torch.no_grad()
def test_a_cache_rebuilt_by_hand_is_refused() -> None:
    """Pruned before layer 0, all its layers are equally short: only the mask knows how long the sequence is."""
    model, inputs = pair()
    method = tp.Method(
        layers={"name": "fixed", "layers": [0]},
        pruner={"name": "topk", "scorer": "random"},
        budget={"name": "keep_count", "tokens": 5},
    )
    mask = torch.cat([inputs["attention_mask"], torch.ones(2, 1, dtype=torch.long)], 1)
    with tp.apply(model, method):
        cache = model(**inputs)[CACHE]
        rebuilt = DynamicCache([(layer.keys, layer.values) for layer in cache.layers])
        with pytest.raises(UnsupportedFeatureError, match=r"mask covers 28 tokens, and the KV cache .* hold 17"):
            model(input_ids=TOKEN, attention_mask=mask, **{CACHE: rebuilt})
        model(input_ids=TOKEN, attention_mask=mask, **{CACHE: cache})


@torch.no_grad()
def test_an_unpruned_conversation_keeps_its_mask() -> None:
    """Text only, then a further token with the whole mask: nothing is refused."""
    model, inputs = pair(variant="text")
    mask = torch.cat([inputs["attention_mask"], torch.ones(2, 1, dtype=torch.long)], 1)
    with tp.apply(model, fastv()):
        cache = model(**inputs)[CACHE]
        step = model(input_ids=TOKEN, attention_mask=mask, **{CACHE: cache}).logits
    plain = model(**inputs)[CACHE]
    assert torch.equal(step, model(input_ids=TOKEN, attention_mask=mask, **{CACHE: plain}).logits)
