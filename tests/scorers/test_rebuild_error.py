"""The scorer `rebuild_error` through the engine, against literal errors of states that the tests record themselves."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import tokenprune as tp
from tests.ops.test_rebuild import literal_errors, literal_points
from tests.support.literal import record
from tests.support.tower import features
from tokenprune.ops.rebuild import random_shares
from tokenprune.scorers.rebuild_error import RebuildError
from tokenprune.testing import TowerTensors, make_context


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
    shares = random_shares([[1] * len(images) for images in recording.image_positions], range(3), 4, 3).view(3, 3)

    def choose(sample: int, number: int, count: int) -> list[int]:
        hidden = recording.layer_inputs[before][sample, recording.image_positions[sample][number]]
        states = torch.stack(tower[sample][number]) if source == "tower" else hidden
        errors = literal_errors(states, literal_points(states, float(shares[sample, number]), 5))
        return sorted(range(len(errors)), key=lambda i: (-errors[i], i))[:count]

    method = {
        "layers": {"name": "fixed", "layers": [before]},
        "pruner": {
            "name": "topk",
            "scorer": {"name": "rebuild_error", "basis": 5, "source": source, "layer": layer, "seed": 4},
        },
        "budget": {"name": "keep_count", "tokens": 7},
    }
    assert recording.kept(method) == recording.image_by_image(7, choose)


def test_seeds_and_samples_have_starts_of_their_own() -> None:
    states = torch.randn(1, 40, 8, generator=torch.Generator().manual_seed(0)).expand(4, -1, -1)
    ctx = make_context(states, sample_ids=[0, 1, 2, 1])
    scores = RebuildError(source="hidden", basis=2).score(ctx)
    assert torch.equal(scores[1], scores[3])
    assert not torch.equal(scores[0], scores[1])
    assert not torch.equal(scores, RebuildError(source="hidden", basis=2, seed=1).score(ctx))


def test_row_separators_are_never_in_the_basis_and_come_last() -> None:
    """They have no features: zeros, which are far from everything."""
    states = 5 + torch.randn(1, 12, 4, generator=torch.Generator().manual_seed(0))
    states[0, [5, 11]] = 0
    tower = {-2: TowerTensors(states[..., 0], states[..., 0], states, states)}
    scores = RebuildError(basis=3).score(make_context(torch.randn(1, 12, 2), tower=tower))[0]
    patches = [i for i in range(12) if i not in (5, 11)]
    share = float(random_shares([[1]], [0], 0, 1))
    expected = literal_errors(states[0, patches], literal_points(states[0, patches], share, 3))
    assert scores[patches].tolist() == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert scores[[5, 11]].tolist() == [0, 0]


def test_the_tower_is_read_only_where_its_states_are_rebuilt() -> None:
    assert RebuildError(layer=-3).vision_layers == {-3}
    assert RebuildError(layer=-3, source="hidden").vision_layers == frozenset()
    assert tp.Method.from_dict(
        {
            "layers": {"name": "fixed", "layers": [2]},
            "pruner": {"name": "topk", "scorer": "rebuild_error"},
            "budget": {"name": "keep_count", "tokens": 3},
        }
    ).pruner.vision_layers == {-2}
