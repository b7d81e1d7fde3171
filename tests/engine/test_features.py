"""Shared image features, by the signature of which ``generate`` decides what to pass."""

from __future__ import annotations

import inspect

import pytest

from tests.support.tiny import CASES
from tokenprune.engine.features import SharedFeatures

FAMILIES = ("llava", "llava_next", "llava_onevision", "qwen2_vl", "qwen2_5_vl", "qwen3_vl")


@pytest.mark.parametrize("family", FAMILIES)
def test_grids_and_sizes_still_reach_the_model(family: str) -> None:
    """With the features shared the signature is the model's own, and the answers are the same, also the second time."""
    case = CASES[family]
    model = case.build()
    inputs = case.inputs(model)
    own = inspect.signature(model.base_model.get_image_features)
    expected = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    with SharedFeatures(model).enabled():
        assert inspect.signature(model.base_model.get_image_features) == own
        for _ in range(2):
            assert model.generate(**inputs, max_new_tokens=3, do_sample=False).equal(expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_beam_search_leaves_the_shared_features_alone(family: str) -> None:
    """It repeats the features that it gets, in place."""
    case = CASES[family]
    model = case.build()
    inputs = case.inputs(model)
    greedy = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    beams = model.generate(**inputs, max_new_tokens=3, do_sample=False, num_beams=3)
    with SharedFeatures(model).enabled():
        for _ in range(2):
            assert model.generate(**inputs, max_new_tokens=3, do_sample=False, num_beams=3).equal(beams)
            assert model.generate(**inputs, max_new_tokens=3, do_sample=False).equal(greedy)
