"""Components that read signals: what they declare is collected from their fields, and checked when they are made."""

from __future__ import annotations

from typing import Annotated, Any

import pytest
import torch
from torch import Tensor

import tokenprune as tp
from tests.support.tiny import CASES
from tokenprune.core.component import FromRegistry
from tokenprune.errors import UnsupportedModelError
from tokenprune.pruners.base import Pruner, Selection
from tokenprune.pruners.dpp import Dpp
from tokenprune.pruners.hiprune import HiPrune
from tokenprune.pruners.max_min import MaxMin
from tokenprune.pruners.stages import Stages
from tokenprune.pruners.topk import TopK
from tokenprune.scorers.base import Scorer
from tokenprune.scorers.fastv import FastV
from tokenprune.scorers.norm import Norm
from tokenprune.scorers.random import Random
from tokenprune.scorers.vision_attention import VisionAttention
from tokenprune.signals.context import PruneContext
from tokenprune.signals.signal_reader import TowerLayerNumber


class Misspelt(Scorer):
    """Declares a signal that does not exist."""

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"keys", "value"})

    def score(self, ctx: PruneContext) -> Tensor:
        raise NotImplementedError


class ClassToken(Scorer):
    """The class token's attention; a mean over patches would be something else."""

    layer: TowerLayerNumber = -2
    heads: int = 4

    @property
    def requires_class_token(self) -> bool:
        return True

    def score(self, ctx: PruneContext) -> Tensor:
        return ctx.vision(self.layer).attention


class TwoScorers(Pruner):
    """Reads two layers of the tower itself, and what its scorers read."""

    shallow: TowerLayerNumber = 0
    deep: TowerLayerNumber = -1
    scorers: tuple[Annotated[Scorer, FromRegistry("scorers")], ...] = ()

    def select(self, ctx: PruneContext) -> Selection:
        raise NotImplementedError


def method(pruner: Pruner) -> tp.Method:
    return tp.Method(layers={"name": "fixed", "layers": [0]}, pruner=pruner, budget={"name": "keep_count", "tokens": 5})


def test_unknown_signals_are_refused_when_the_component_is_made() -> None:
    with pytest.raises(tp.errors.ConfigError) as caught:
        Misspelt()
    message = str(caught.value)
    assert "Misspelt declares the signals 'keys' in needs, which do not exist" in message
    names = "annotations, attention, embeddings, entering, final_norm, grid, hidden, key, previous, query, sample_ids"
    assert f"use any of {names}, text, tower_value, value" in message


def test_fields_with_tower_layers_are_collected() -> None:
    assert VisionAttention(layer=3).vision_layers == {3}
    assert HiPrune(object_layer=1, deep_layer=-1).vision_layers == {1, -1}
    assert ClassToken().vision_layers == {-2}, "other integers are no layers"
    assert Norm().vision_layers == frozenset()


def test_components_in_fields_are_collected() -> None:
    pruner = TwoScorers(scorers=(VisionAttention(layer=5), FastV(), ClassToken(layer=2)))
    assert pruner.needs == {"hidden", "attention"}
    assert pruner.vision_layers == {0, -1, 5, 2}
    assert pruner.requires_class_token
    assert not TwoScorers(scorers=(VisionAttention(),)).requires_class_token
    assert TwoScorers().needs == {"hidden"}


def test_components_within_components_are_collected() -> None:
    dpp = Dpp(relevance=Norm(source="key"))
    pruner = Stages(pruners=(MaxMin(pool=VisionAttention(layer=1)), dpp, TopK(scorer=Random())))
    assert dpp.needs == {"hidden", "key"}
    assert pruner.needs == {"hidden", "key", "sample_ids"}
    assert pruner.vision_layers == {1}
    assert not pruner.requires_class_token
    assert Stages(pruners=(TopK(scorer=ClassToken()),)).requires_class_token


class Forwards:
    """Counts the forward passes of a model."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.number = 0
        for module in model.modules():
            module.register_forward_pre_hook(self._count)

    def _count(self, module: Any, args: Any) -> None:
        self.number += 1


def test_towers_without_a_class_token_are_refused_before_any_forward() -> None:
    """LLaVA-OneVision's tower is a SigLIP."""
    model = CASES["llava_onevision"].build()
    forwards = Forwards(model)
    with (
        pytest.raises(UnsupportedModelError, match=r"TopK reads the attention of a class token.*llava_onevision"),
        tp.apply(model, method(TopK(scorer=ClassToken()))),
    ):
        pytest.fail("the block must not start")
    assert forwards.number == 0
    with tp.apply(model, method(TopK(scorer=VisionAttention(layer=-1)))):
        pass  # a scorer that takes the mean over all patches is not refused


def test_towers_with_a_class_token_are_accepted() -> None:
    """LLaVA's tower is a CLIP: the scores are those of the scorer that accepts any tower."""
    case = CASES["llava"]
    model = case.build()
    inputs = case.batch(model, 2, "left").inputs
    kept = []
    for scorer in (ClassToken(), VisionAttention()):
        with torch.no_grad(), tp.apply(model, method(TopK(scorer=scorer))) as run:
            model(**inputs)
        assert run.report.after == [5, 5]
        kept.append(run.stages[0].kept.tolist())
    assert kept[0] == kept[1]
