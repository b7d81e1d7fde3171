"""Layers worth trying."""

from __future__ import annotations

import pytest

import tokenprune as tp
from tests.support.tiny import CASES
from tests.tuning.models import llava
from tokenprune.adapters import adapter_for
from tokenprune.selectors.entropy_profile import EntropyProfile
from tokenprune.tuning.layers import own_layers, schedules, single_layers


def curves(*mean: float) -> EntropyProfile:
    return EntropyProfile(family="any", num_layers=len(mean), curves=(mean, mean))


#: The sharpest drop is before layer 2, and the low plateau starts at layer 3.
COLLAPSE = curves(3.0, 2.8, 1.4, 0.3, 0.25, 0.3, 0.28, 0.26)


@pytest.mark.parametrize(
    ("own", "depth", "measured", "layers"),
    [
        (0, 32, None, [0]),
        (0, 8, COLLAPSE, [0]),
        (2, 32, None, [2, 1, 4, 8]),
        (5, 8, COLLAPSE, [5, 1, 2, 4]),  # 4 is behind the plateau's start; 1/8 and 1/4 of the depth are 1 and 2
        (None, 30, None, [1, 4, 8]),
        (4, 4, None, [1]),  # 1/8 of four layers is rounded up to 1, and 4 does not exist
        (1, 1, None, []),
    ],
)
def test_layers_of_methods_with_one_stage(
    own: int | None, depth: int, measured: EntropyProfile | None, layers: list[int]
) -> None:
    assert [layer for (layer,) in single_layers(own, depth, measured)] == layers


@pytest.mark.parametrize(
    ("own", "pulled"),
    [
        ((8, 16, 24), (4, 8, 12)),
        ((2, 4, 6), (1, 2, 3)),
        ((1, 2, 3), None),  # nothing is earlier without a stage before layer 1
        ((0, 1, 2), None),
        ((0, 16), (0, 8)),
        ((3, 7, 16), (1, 3, 8)),
        ((2, 3, 4), (1, 2, 3)),  # 1, 1, 2
    ],
)
def test_schedules_are_pulled_forward_by_half(own: tuple[int, ...], pulled: tuple[int, ...] | None) -> None:
    assert schedules(own) == [own] + ([] if pulled is None else [pulled])


def test_own_layers_need_no_forward_pass() -> None:
    adapter = adapter_for(CASES["llava"].build())
    assert own_layers(tp.load_method("fastv"), adapter, None) == (2,)
    assert own_layers(tp.load_method("pyramiddrop"), adapter, None) == (1, 2, 3)
    assert own_layers(tp.load_method("vtw"), adapter, None) is None
    far = tp.load_method("fastv").model_copy(update={"layers": tp.Method.from_dict(FAR).layers})
    assert own_layers(far, adapter, None) is None


FAR = {
    "layers": {"name": "fixed", "layers": [9]},
    "pruner": {"name": "topk", "scorer": "random"},
    "budget": {"name": "keep_ratio", "ratio": 0.5},
}


@pytest.mark.parametrize("depth", [1, 2, 3, 5, 8, 9])
def test_the_towers_depth_is_found(depth: int) -> None:
    assert adapter_for(llava(tower=depth)).tower_layers == depth


@pytest.mark.parametrize(("name", "depth"), [("qwen2_5_vl", 2), ("qwen3_vl", 3), ("aya_vision", None)])
def test_other_towers(name: str, depth: int | None) -> None:
    """The adapter of the last one does not say how patches become tokens."""
    assert adapter_for(CASES[name].build()).tower_layers == depth
