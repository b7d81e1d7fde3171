"""The scorer `leverage` through the engine, against literal scores of states that the tests record themselves."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import tokenprune as tp
from tests.ops.test_leverage import literal
from tests.support.literal import record
from tests.support.tower import features
from tokenprune.budgets.base import Schedule
from tokenprune.pruners.topk import TopK
from tokenprune.scorers.leverage import Leverage


@pytest.mark.parametrize(("source", "layer", "before"), [("tower", -1, 0), ("tower", -2, 2), ("hidden", -2, 2)])
@pytest.mark.parametrize(
    ("name", "variant"), [("llava", "image"), ("llava", "multi"), ("llava", "ragged"), ("vipllava", "multi")]
)
def test_the_engine_keeps_what_the_definition_says(
    name: str, variant: Any, source: str, layer: int, before: int
) -> None:
    """Ragged batches, padded on the left, of prompts with several images."""
    recording = record(name, variant, batch=3)
    tower = features(recording, name, layer)

    def choose(sample: int, number: int, count: int) -> list[int]:
        hidden = recording.layer_inputs[before][sample, recording.image_positions[sample][number]]
        scores = literal(torch.stack(tower[sample][number]) if source == "tower" else hidden, 0.9)
        return sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:count]

    method = {
        "layers": {"name": "fixed", "layers": [before]},
        "pruner": {"name": "topk", "scorer": {"name": "leverage", "source": source, "layer": layer}},
        "budget": {"name": "keep_count", "tokens": 7},
    }
    assert recording.kept(method) == recording.image_by_image(7, choose)


def test_the_tower_is_read_only_where_its_states_are_scored() -> None:
    assert Leverage(layer=-3).vision_layers == {-3}
    assert Leverage(layer=-3, source="hidden").vision_layers == frozenset()


def test_named_defaults() -> None:
    """32 of LLaVA-1.5's 576 tokens, before the language model."""
    made = tp.load_method("svd-prune")
    assert made.pruner == TopK(scorer=Leverage()) == TopK(scorer=Leverage(variance=0.9, source="tower", layer=-2))
    assert made.layers.layers == (0,)  # type: ignore[attr-defined]
    assert made.budget.keep(576, Schedule((0,), 32)) == (32,)
