"""Why a method cannot choose from the features of one image alone: every named method, and every kind of reason."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import tokenprune as tp
from tests.support.literal import record
from tokenprune.authoring import FEATURE_SIGNALS, Budget, ConfigError, Schedule, make_context, needs_beyond_features
from tokenprune.core import plugins
from tokenprune.errors import BudgetError
from tokenprune.signals.signals import INPUT_SIGNALS, SIGNALS, WITH_TEXT

INSIDE = "prunes inside the language model"
LAYER_2 = f"{INSIDE} (Fixed(layers=(2,)))"
STAGES = INSIDE + " (Relative(depths={}))"
SEARCH = "searches for its layers ({})"
TOWER = "reads layer {} of the vision tower"
IMAGES = "compares the images of a prompt"
DECIDES = "decides by itself how many tokens survive (budget adaptive)"

#: Every named method, with what it needs; none where it can choose.
REASONS: dict[str, tuple[str, ...]] = {
    "apet": (STAGES.format((0.0, 0.5)), TOWER.format(-2)),
    "cdpruner": ("reads 'text'",),
    "centroid": (LAYER_2,),
    "clse": (STAGES.format((0.04, 0.35, 0.67)), "reads 'attention' and 'embeddings'"),
    "dart": (LAYER_2, "reads 'attention'"),
    "diversity": (TOWER.format(-1),),
    "divprune": (),
    "dycoke": (IMAGES, DECIDES),
    "energy-diversity": (TOWER.format(-1),),
    "energy-tower-large": (TOWER.format(-1),),
    "entropy-tower": (TOWER.format(0),),
    "entropy-tower-reference": (TOWER.format(-1),),
    "entropyprune": (SEARCH.format("entropy_collapse"), "reads 'query'"),
    "entropyprune-paper": (SEARCH.format("entropy_collapse"), "reads 'query'"),
    "entropyprune-reference": (SEARCH.format("entropy_collapse"), "reads 'query'"),
    "entropyprune-tower": (TOWER.format(-1),),
    "evs": (IMAGES, DECIDES),
    "fastv": (LAYER_2, "reads 'attention'"),
    "flashvid": (STAGES.format((0.0, 0.7142857)), "reads 'attention'", TOWER.format(-1), IMAGES),
    "framefusion": (f"{INSIDE} (Fixed(layers=(0, 1, 2)))", "reads 'attention'", IMAGES),
    "hiprune": ("reads layers -2 and 8 of the vision tower",),
    "holov": (TOWER.format(-2),),
    "mmr": (TOWER.format(-2),),
    "norm-hidden-large": (LAYER_2,),
    "norm-hidden-small": (LAYER_2,),
    "norm-key-large": (LAYER_2, "reads 'key'"),
    "norm-key-small": (LAYER_2, "reads 'key'"),
    "norm-query-large": (LAYER_2, "reads 'query'"),
    "norm-query-small": (LAYER_2, "reads 'query'"),
    "norm-tower-large": (TOWER.format(-1),),
    "oracle": (LAYER_2, "reads 'annotations'"),
    "otprune": (),
    "priortr": (f"{INSIDE} (Fixed(layers=(3,)))", "reads 'attention'"),
    "prunesid": (TOWER.format(-2),),
    "pyramiddrop": (STAGES.format((0.25, 0.5, 0.75)), "reads 'entering'"),
    "random": (LAYER_2,),
    "scope": (TOWER.format(-2),),
    "sparsevlm": (STAGES.format((0.09375, 0.21875, 0.5)), "reads 'attention' and 'embeddings'"),
    "svd-prune": (TOWER.format(-2),),
    "tome": (TOWER.format(-2),),
    "v2drop": (STAGES.format((0.09375, 0.53125, 0.6875)), "reads 'previous'"),
    "vidcom2": (IMAGES,),
    "vision-attention": (TOWER.format(-2),),
    "visionzip": (TOWER.format(-2),),
    "vispruner": (TOWER.format(-2),),
    "vscan": (STAGES.format((0.0, 0.5)), "reads 'entering'", "reads layers -2 and 5 of the vision tower"),
    "vtw": (SEARCH.format("vtw"),),
}


def with_pruner(pruner: Any, budget: Any = None, layers: Any = None) -> tp.Method:
    return tp.Method(
        layers=layers or {"name": "fixed", "layers": [0]},
        pruner=pruner,
        budget=budget or {"name": "keep_ratio", "ratio": 0.5},
    )


def test_all_named_methods_are_listed() -> None:
    assert sorted(REASONS) == sorted(named.name for named in tp.list_methods())


@pytest.mark.each("name")
@pytest.mark.parametrize("name", REASONS)
def test_named_methods(name: str) -> None:
    method = tp.load_method(name)
    found = needs_beyond_features(method)
    assert found == REASONS[name]
    assert all("\n" not in reason for reason in found)
    without_tower = tuple(reason for reason in REASONS[name] if not reason.endswith("of the vision tower"))
    assert needs_beyond_features(method, tower=True) == without_tower
    assert needs_beyond_features(method, alone=True) == tuple(r for r in REASONS[name] if r != IMAGES)


@pytest.mark.parametrize(
    ("pruner", "given", "reasons"),
    [
        ({"name": "topk", "scorer": "random"}, FEATURE_SIGNALS, ()),
        ({"name": "topk", "scorer": "random"}, {"hidden", "grid"}, ("reads 'sample_ids'",)),
        ({"name": "vidcom2"}, {"hidden", "sample_ids"}, ("reads 'grid'", IMAGES)),
        (
            {"name": "mmr", "scorer": {"name": "matrix_entropy", "source": "hidden", "final_norm": True}},
            FEATURE_SIGNALS,
            ("reads 'final_norm'",),
        ),
        (
            {"name": "mmr", "scorer": {"name": "matrix_entropy", "source": "hidden", "final_norm": True}},
            FEATURE_SIGNALS | {"final_norm"},
            (),
        ),
        (
            {"name": "topk", "scorer": {"name": "energy", "source": "value", "tower_layer": 1}},
            FEATURE_SIGNALS,
            ("reads 'tower_value'", "reads layer 1 of the vision tower"),
        ),
        ({"name": "pool", "scorer": "instruction", "pruner": "max_min"}, FEATURE_SIGNALS, ("reads 'text'",)),
        ({"name": "max_min", "pool": "annotation"}, FEATURE_SIGNALS, ("reads 'annotations'",)),
        ({"name": "stages", "pruners": ["evs"]}, FEATURE_SIGNALS, (IMAGES,)),
    ],
)  # fmt: skip
def test_signals_that_are_not_there(pruner: Any, given: Any, reasons: tuple[str, ...]) -> None:
    assert needs_beyond_features(with_pruner(pruner), given=given) == reasons


def test_values_of_the_tower_come_with_its_layers() -> None:
    method = with_pruner({"name": "topk", "scorer": {"name": "energy", "source": "value", "tower_layer": 1}})
    assert needs_beyond_features(method, tower=True) == ()


@pytest.mark.parametrize(
    ("budget", "reason"),
    [
        ({"name": "keep_count", "tokens": 64}, "keeps a number of tokens that the images of a prompt share ({})"),
        ({"name": "keep_schedule", "tokens": [64]}, "keeps a number of tokens that the images of a prompt share ({})"),
        ({"name": "layer_average", "tokens": 64}, "keeps a number of tokens that the images of a prompt share ({})"),
        ({"name": "flops_reduction", "percent": 50}, "keeps a number of tokens that depends on the text ({})"),
        ({"name": "layer_average", "ratio": 0.5}, None),
        ({"name": "keep_schedule", "ratios": [0.5]}, None),
        ("drop_all", None),
    ],
)
def test_budgets(budget: Any, reason: str | None) -> None:
    method = with_pruner("max_min", budget)
    name = budget if isinstance(budget, str) else budget["name"]
    expected = () if reason is None else (reason.format(f"budget {name}"),)
    assert needs_beyond_features(method) == expected
    assert needs_beyond_features(method, alone=True) == (() if reason is None or "share" in reason else expected)


@pytest.mark.parametrize(
    ("layers", "reason"),
    [
        ({"name": "relative", "depths": [0]}, None),
        ({"name": "relative", "depths": [0.001]}, f"{INSIDE} (Relative(depths=(0.001,)))"),
        ({"name": "fixed", "layers": [2000]}, "has layers that cannot be used (fixed: layer 2000 is out of range"),
        ("entropy_collapse", "searches for its layers (entropy_collapse)"),
    ],
)
def test_layers(layers: Any, reason: str | None) -> None:
    found = needs_beyond_features(with_pruner("max_min", layers=layers))
    assert len(found) == (reason is not None)
    assert all(text.startswith(reason or "") for text in found)


def test_unknown_signals_are_refused() -> None:
    with pytest.raises(ConfigError, match="needs_beyond_features declares the signals 'keys'"):
        needs_beyond_features(tp.load_method("divprune"), given={"keys"})


def test_what_a_layer_makes_is_never_there() -> None:
    """The rule of `SignalReader.needs`, of all signals."""
    never = {"query", "key", "value", "previous", "attention", "entering", "embeddings", "text", "annotations"}
    assert never == SIGNALS - FEATURE_SIGNALS - {"final_norm", "tower_value"}
    assert never > WITH_TEXT
    assert FEATURE_SIGNALS < INPUT_SIGNALS


class Costly(Budget):
    """Reads what it does not declare."""

    def keep(self, before: int, schedule: Schedule) -> tuple[int, ...]:
        assert schedule.cost is not None
        return (min(before, schedule.cost([before] * schedule.num_layers, None)),) * len(schedule.layers)


def test_budgets_declare_that_they_read_the_cost() -> None:
    """Every registered budget, asked for some tokens."""
    fields: dict[str, Any] = {
        "flops_reduction": {"percent": 50},
        "keep_count": {"tokens": 3},
        "keep_ratio": {"ratio": 0.5},
        "keep_schedule": {"ratios": [0.5]},
        "layer_average": {"ratio": 0.5},
    }
    registry = plugins.registry("budgets")
    for name in registry.names():
        read: list[int] = []
        budget = registry.get(name)(**fields.get(name, {}))
        for before in (64, 576):
            budget.keep(before, Schedule((0,), 4, lambda visual, made, read=read: read.append(1) or 9 + sum(visual)))
        assert bool(read) == budget.reads_cost, name


def test_a_cost_that_is_not_declared_is_refused() -> None:
    recording = record("llava")
    with (
        pytest.raises(BudgetError, match="Costly read the cost of a prefill, which it does not declare; let its reads"),
        tp.apply(recording.model, with_pruner("max_min", Costly())),
    ):
        recording.model(**recording.inputs)


@pytest.mark.parametrize("name", [name for name, reasons in REASONS.items() if not reasons])
@pytest.mark.parametrize("variant", ["image", "multi"])
def test_the_choice_from_features_is_that_of_a_prefill(name: str, variant: Any) -> None:
    """Image by image, without a prompt; several images in a prompt, text around them, padding."""
    recording = record("llava", variant, batch=3)
    method = tp.load_method(name).model_copy(update={"budget": with_pruner("max_min").budget})
    expected = recording.kept({**method.model_dump(mode="json"), "label": None})
    for sample, images in enumerate(recording.image_positions):
        kept: list[int] = []
        for image in images:
            features = recording.layer_inputs[0][sample, image].float()[None]
            (count,) = method.budget.keep(len(image), Schedule((0,), 4))
            ctx = make_context(features, keep=count, needs=FEATURE_SIGNALS, layer=0)
            kept += torch.tensor(image)[method.pruner.select(ctx).keep[0]].tolist()
        assert kept == expected[sample]
