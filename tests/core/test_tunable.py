"""What may be tuned: found beside the fields of any component, checked by the fields, and combined."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pytest
from pydantic import Field, model_validator

from tokenprune.core.component import Component, FromRegistry
from tokenprune.core.tunable import Tunable, TunableLayer, get_field, replace_field, tunable_fields, variants
from tokenprune.errors import ConfigError
from tokenprune.pruners.stages import Stages
from tokenprune.pruners.topk import TopK
from tokenprune.scorers.base import Scorer
from tokenprune.scorers.random import Random
from tokenprune.signals.signal_reader import TowerLayerMark, TowerLayerNumber


class Sides(Scorer):
    """A scorer as a plugin would write it: nothing registers it."""

    side: Annotated[Literal["left", "right"], Tunable("left", "right")] = "left"
    weight: Annotated[float | None, Tunable(None, 0.5)] = Field(default=1.0, ge=0)
    layer: Annotated[TowerLayerNumber, TunableLayer(1 / 3, 1.0)] = -2
    fixed: int = 3

    def score(self, ctx: Any) -> Any:
        raise NotImplementedError


class Pair(Component):
    """Two numbers, of which the first must not be larger."""

    low: Annotated[int, Tunable(1, 2, 3)] = 1
    high: Annotated[int, Tunable(1, 2, 3)] = 3

    @model_validator(mode="after")
    def _ordered(self) -> Pair:
        if self.low > self.high:
            raise ValueError("low must not be above high")
        return self


class Chooser(Component):
    """A component that may be another one."""

    scorer: Annotated[Scorer, FromRegistry("scorers"), Tunable("random", {"name": "norm", "keep": "small"})]


def test_own_fields_come_with_their_own_value_first() -> None:
    assert tunable_fields(Sides(side="right", weight=0.5), 24) == {
        "side": ("right", "left"),
        "weight": (0.5, None),
        "layer": (-2, 8, 23),
    }


def test_without_a_tower_layers_keep_their_value() -> None:
    assert tunable_fields(Sides(layer=40), None)["layer"] == (40,)


@pytest.mark.parametrize(
    ("own", "depth", "values"),
    [
        (-2, 6, (-2, 2, 5)),
        (2, 6, (2, 5)),
        (-1, 6, (-1, 2)),  # the same layer as 5
        (8, 6, (2, 5)),  # the tower has no layer 8
        (-7, 6, (2, 5)),
        (0, 1, (0,)),
        (-6, 6, (-6, 2, 5)),
    ],
)
def test_layers_are_those_of_the_tower(own: int, depth: int, values: tuple[int, ...]) -> None:
    assert tunable_fields(Sides(layer=own), depth)["layer"] == values


@pytest.mark.parametrize(("depth", "layers"), [(24, [8, 12, 23]), (6, [2, 3, 5]), (5, [2, 3, 4]), (1, [0])])
def test_shares_are_rounded_to_the_nearest_layer(depth: int, layers: list[int]) -> None:
    assert TunableLayer(1 / 3, 0.5, 1.0).layers(depth) == layers


def test_the_engine_still_sees_which_fields_are_tower_layers() -> None:
    assert TowerLayerMark in Sides.model_fields["layer"].metadata
    assert Sides(layer=4).vision_layers == {4}


def test_components_in_fields_and_tuples_are_looked_into() -> None:
    pruner = Stages(pruners=(TopK(scorer=Random()), TopK(scorer=Sides())))
    assert list(tunable_fields(pruner, 24)) == [f"pruners.1.scorer.{name}" for name in ("side", "weight", "layer")]
    changed = replace_field(pruner, "pruners.1.scorer.side", "right")
    assert changed == Stages(pruners=(TopK(scorer=Random()), TopK(scorer=Sides(side="right"))))
    assert pruner.pruners[1] == TopK(scorer=Sides()), "the component itself is not changed"


def test_variants_are_the_grid() -> None:
    made = variants(TopK(scorer=Sides(layer=8)), tower_layers=24)
    assert made[0] == TopK(scorer=Sides(layer=8))
    expected = [
        TopK(scorer=Sides(side=side, weight=weight, layer=layer))
        for side in ("left", "right")
        for weight in (1.0, None, 0.5)
        for layer in (8, 23)
    ]
    assert len(made) == len(expected) == 12
    assert all(variant in made for variant in expected)


def test_only_the_named_fields_are_varied() -> None:
    made = variants(TopK(scorer=Sides()), ["scorer.side"], tower_layers=24)
    assert made == [TopK(scorer=Sides()), TopK(scorer=Sides(side="right"))]
    assert variants(TopK(scorer=Sides()), []) == [TopK(scorer=Sides())]


def test_a_layer_that_the_tower_lacks_is_not_offered() -> None:
    made = variants(Sides(layer=8), ["layer"], tower_layers=6)
    assert [variant.layer for variant in made] == [2, 5]


def test_combinations_that_a_component_refuses_are_left_out() -> None:
    made = [(pair.low, pair.high) for pair in variants(Pair())]
    assert made == [(1, 3), (1, 1), (1, 2), (2, 3), (2, 2), (3, 3)]
    assert tunable_fields(Pair(low=1, high=1), None)["low"] == (1, 2, 3)


def test_a_field_of_components_offers_components() -> None:
    chooser = Chooser(scorer=Sides())
    values = tunable_fields(chooser, 24)
    assert list(values) == ["scorer"]
    assert [type(value).__name__ for value in values["scorer"]] == ["Sides", "Random", "Norm"]
    assert [variant.scorer for variant in variants(chooser)] == list(values["scorer"])


def test_a_component_without_tunable_fields_is_its_only_variant() -> None:
    assert variants(Random(seed=3)) == [Random(seed=3)]


def test_values_that_the_field_refuses_are_an_error() -> None:
    class Wrong(Component):
        share: Annotated[float, Tunable(0.5, 2.0)] = Field(default=0.1, le=1)

    with pytest.raises(ConfigError, match=r"Wrong.share is annotated with Tunable\(0.5, 2.0\), but refuses 2.0 \("):
        tunable_fields(Wrong(), None)
    with pytest.raises(ConfigError, match="name only values that the field allows"):
        variants(Wrong())


def test_values_of_another_type_are_an_error() -> None:
    class Strict(Component):
        steps: Annotated[int, Tunable("3")] = 1

    with pytest.raises(ConfigError, match=r"Strict.steps .* refuses '3'"):
        tunable_fields(Strict(), None)


def test_annotations_that_would_do_nothing_are_an_error() -> None:
    class Half(Component):
        share: Annotated[float, Tunable(0.5)] | None = None

    class Items(Component):
        shares: tuple[Annotated[float, Tunable(0.5)], ...] = ()

    class Twice(Component):
        share: Annotated[float, Tunable(0.5), Tunable(0.7)] = 0.1

    for component, problem in ((Half(), "a part of"), (Items(), "a part of"), (Twice(), "annotated twice")):
        with pytest.raises(ConfigError, match=f"is not clear: .*{problem}.*; annotate the whole field once"):
            tunable_fields(component, None)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (Tunable, "has no values"),
        (TunableLayer, "give numbers from 0 to 1"),
        (lambda: TunableLayer(0.5, 8), "give numbers from 0 to 1"),
        (lambda: TunableLayer(-0.1), "give numbers from 0 to 1"),
    ],
)
def test_annotations_without_sense_are_refused_where_they_are_written(make: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make()


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("scorer.sied", "left", "Sides has no field 'sied'.*use side, weight"),
        ("side", "left", "TopK has no field 'side'.*use scorer"),
        ("scorer.side", "middle", "Sides: side: Input should be 'left' or 'right'"),
        ("scorer.fixed.more", 1, "Sides.fixed holds no component"),
    ],
)
def test_wrong_replacements_are_errors(path: str, value: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        replace_field(TopK(scorer=Sides()), path, value)


@pytest.mark.parametrize("path", ["pruners.1.scorer.side", "pruners.0", "pruners.first.scorer.side"])
def test_wrong_items_of_a_tuple_are_errors(path: str) -> None:
    with pytest.raises(ConfigError, match=r"Stages.pruners holds no component with a field at pruners"):
        replace_field(Stages(pruners=(TopK(scorer=Sides()),)), path, "left")


def test_values_are_read_by_the_same_paths() -> None:
    pruner = Stages(pruners=(TopK(scorer=Random(seed=4)), TopK(scorer=Sides(layer=3))))
    assert get_field(pruner, "pruners.0.scorer.seed") == 4
    assert get_field(pruner, "pruners.1.scorer") == Sides(layer=3)
    for path in ("pruners.2.scorer", "pruners.1", "pruners.1.scorer.sied", "scorer"):
        with pytest.raises(ConfigError):
            get_field(pruner, path)


def test_a_path_that_is_not_tunable_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"has no tunable field 'scorer.fixed'; use scorer.side, scorer.weight"):
        variants(TopK(scorer=Sides()), ["scorer.fixed"])
    assert replace_field(TopK(scorer=Sides()), "scorer.fixed", 4) == TopK(scorer=Sides(fixed=4))


def test_annotations_do_not_change_the_schema() -> None:
    class Plain(Component):
        side: Literal["left", "right"] = "left"

    class Marked(Component):
        side: Annotated[Literal["left", "right"], Tunable("left", "right")] = "left"

    assert Plain.model_json_schema() | {"title": ""} == Marked.model_json_schema() | {"title": ""}
