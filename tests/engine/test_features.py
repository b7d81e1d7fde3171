"""Shared image features, by the signature of which ``generate`` decides what to pass."""

from __future__ import annotations

import inspect

import pytest
import torch
from transformers.modeling_outputs import BaseModelOutput

from tests.support.tiny import CASES
from tokenprune.engine.trials.features import SharedFeatures, fresh

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


def test_fresh_containers_hold_everything_and_share_no_list() -> None:
    """Also what a model adds to its output beside the fields, as several do before transformers 5.23."""
    tensor = torch.ones(2)
    output = BaseModelOutput(last_hidden_state=tensor)
    output.pooler_output = [tensor]  # type: ignore[attr-defined]
    made = fresh(output)
    assert type(made) is BaseModelOutput
    assert made.last_hidden_state is made["last_hidden_state"] is tensor
    made.pooler_output[0] = torch.zeros(2)
    made.last_hidden_state = torch.zeros(2)
    assert output.pooler_output[0] is output.last_hidden_state is output["last_hidden_state"] is tensor  # type: ignore[attr-defined]
