"""Ways to generate that are refused before anything runs."""

from __future__ import annotations

import pytest
import torch

import tokenprune as tp
from tests.support.simple import fastv, pair
from tests.support.tiny.core import TRANSFORMERS
from tokenprune.errors import UnsupportedFeatureError


@pytest.mark.parametrize("name", ["generate_batch", "init_continuous_batching", "continuous_batching_context_manager"])
def test_continuous_batching_is_refused(name: str) -> None:
    model, inputs = pair()
    with tp.apply(model, fastv()), pytest.raises(UnsupportedFeatureError, match=f"continuous batching .{name}"):
        getattr(model, name)(inputs["input_ids"].tolist())
    assert name not in vars(model)


def test_a_paged_cache_is_refused() -> None:
    model, inputs = pair()
    with (
        tp.apply(model, fastv()),
        torch.no_grad(),
        pytest.raises(UnsupportedFeatureError, match="continuous batching"),
    ):
        model.generate(inputs["input_ids"], cache_implementation="paged", max_new_tokens=2)


@pytest.mark.parametrize("size", [1, 2, 8, 18])
@torch.no_grad()
def test_images_behind_the_first_chunk_are_refused(size: int) -> None:
    """A chunk of one visual token looks like a decode step: it must not pass unpruned."""
    if TRANSFORMERS < (5, 23):
        pytest.skip("images are not encoded before the chunks")
    model, inputs = pair(batch=1, padding="none")
    ran: list[int] = []
    handle = model.model.language_model.layers[0].register_forward_pre_hook(lambda module, args: ran.append(1))
    with tp.apply(model, fastv()), pytest.raises(UnsupportedFeatureError, match="behind the first chunk"):
        model.generate(**inputs, max_new_tokens=3, prefill_chunk_size=size)
    handle.remove()
    assert not ran
