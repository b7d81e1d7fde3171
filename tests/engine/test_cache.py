"""Pruned KV caches: they answer for the whole sequence, and are refused where nobody cuts the masks."""

from __future__ import annotations

import copy
import pickle
import threading
from typing import Any

import pytest
import torch
from torch import Tensor

import tokenprune as tp
from tests.support.simple import fastv, pair
from tests.support.tiny import CASES
from tokenprune.engine.cache import PrunedCacheLayer, cache_bytes
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
        cache = model(**inputs).past_key_values
        model(input_ids=TOKEN, past_key_values=copy.deepcopy(cache))
    with pytest.raises(UnsupportedFeatureError, match="block that has ended"):
        model(input_ids=TOKEN, past_key_values=cache)
    with tp.apply(model, fastv()), pytest.raises(UnsupportedFeatureError, match="another apply block"):
        model(input_ids=TOKEN, past_key_values=cache)


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
        cache = model(**inputs).past_key_values
        keys = cache.layers[1].keys[:, :, -1:]
        with pytest.raises(UnsupportedFeatureError, match="outside a call"):
            cache.layers[1].update(keys, keys)


@torch.no_grad()
def test_a_pickled_cache() -> None:
    """It can be stored and looked at; as its block is not there any more, it is not extended."""
    model, inputs = pair()
    with tp.apply(model, fastv()):
        cache = model(**inputs).past_key_values
        loaded = pickle.loads(pickle.dumps(cache))
        assert isinstance(loaded.layers[1], PrunedCacheLayer)
        assert torch.equal(loaded.layers[1].keys, cache.layers[1].keys)
        assert loaded.get_seq_length() == inputs["input_ids"].shape[1]
        with pytest.raises(UnsupportedFeatureError, match="another apply block"):
            model(input_ids=TOKEN, past_key_values=loaded)
    with pytest.raises(UnsupportedFeatureError, match="block that has ended"):
        model(input_ids=TOKEN, past_key_values=loaded)


@pytest.mark.parametrize("family", ["llava", "gemma3"])
@torch.no_grad()
def test_bytes_that_were_saved(family: str) -> None:
    """The unpruned size is that of the unpruned model's cache."""
    case = CASES[family]
    model = case.build()
    inputs = case.batch(model, 2, "left").inputs
    whole = cache_bytes(model(**inputs).past_key_values)
    with tp.apply(model, fastv(name="keep_ratio", ratio=0.4)) as run:
        cache = model(**inputs).past_key_values
    assert run.report.kv_bytes_unpruned == whole
    assert run.report.kv_bytes == cache_bytes(cache) < whole
