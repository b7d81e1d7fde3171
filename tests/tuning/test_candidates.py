"""Candidates: which there are, what they are called, and why others are not among them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

import tokenprune as tp
from tests.support.tiny import CASES
from tests.tuning.models import llava
from tokenprune.adapters import adapter_for
from tokenprune.adapters.base import Adapter
from tokenprune.budgets.base import Budget, Schedule
from tokenprune.budgets.flops_reduction import FlopsReduction
from tokenprune.budgets.keep import Adaptive, KeepCount, KeepRatio
from tokenprune.budgets.layer_average import LayerAverage
from tokenprune.errors import ConfigError, MissingDataError, TokenPruneError, UnknownNameError
from tokenprune.pruners.dpp import Dpp
from tokenprune.pruners.hiprune import HiPrune
from tokenprune.pruners.max_min import MaxMin
from tokenprune.pruners.pool import Pool
from tokenprune.pruners.stages import Stages
from tokenprune.pruners.topk import TopK
from tokenprune.scorers.fastv import FastV
from tokenprune.scorers.matrix_entropy import MatrixEntropy
from tokenprune.scorers.random import Random
from tokenprune.scorers.vision_attention import VisionAttention
from tokenprune.selectors.entropy_profile import EntropyProfile
from tokenprune.tuning.candidate_maker import Candidate
from tokenprune.tuning.candidates import default_candidates
from tokenprune.tuning.composed import COMPOSITIONS

VISUAL = 16
HALF = LayerAverage(ratio=0.5)
RANDOM = TopK(scorer=Random())


@pytest.fixture(scope="module")
def adapter() -> Adapter:
    """A model with six layers in its tower and eight in its decoder."""
    return adapter_for(llava())


def made(adapter: Adapter, budget: Budget = HALF, **more: Any) -> dict[str, Candidate]:
    candidates, _ = default_candidates(adapter, budget, visual=VISUAL, **more)
    return {candidate.name: candidate for candidate in candidates}


def layers(candidate: Candidate) -> tuple[int, ...]:
    return tuple(candidate.method.layers.model_dump()["layers"])


def test_every_installed_method_is_there_or_its_reason(adapter: Adapter) -> None:
    candidates, refused = default_candidates(adapter, HALF, visual=VISUAL)
    named = {candidate.name.partition(":")[0] for candidate in candidates if candidate.origin in ("named", "variant")}
    expected = {m.name for m in tp.list_methods() if not m.name.startswith(("oracle", "norm-", "energy-"))} - {"random"}
    assert named | set(refused) == expected
    assert {"visionzip", "hiprune", "vscan", "entropyprune", "fastv", "pyramiddrop"} <= named
    assert list(refused) == [
        "entropyprune-paper",
        "vtw",
    ]  # the layer and the states of the first are entropyprune's, too
    assert all("its candidates are others'" in reason for reason in refused.values())


def test_candidates_have_fixed_layers_the_budget_and_unique_names(adapter: Adapter) -> None:
    candidates, _ = default_candidates(adapter, HALF, visual=VISUAL)
    names = Counter(candidate.name for candidate in candidates)
    assert set(names.values()) == {1}
    assert [candidate.method.label for candidate in candidates] == list(names)
    assert {candidate.method.budget for candidate in candidates} == {HALF}
    for candidate in candidates:
        HALF.keep(VISUAL, Schedule(layers(candidate), 8))
    definitions = [candidate.method.model_dump_json(exclude={"label"}) for candidate in candidates]
    assert len(set(definitions)) == len(definitions)


def test_the_order_is_always_the_same(adapter: Adapter) -> None:
    assert list(made(adapter)) == list(made(adapter_for(llava())))


def test_a_method_as_it_is_shipped_is_named_so(adapter: Adapter) -> None:
    candidates = made(adapter)
    assert candidates["visionzip"].origin == "named"
    assert candidates["visionzip"].method.pruner == tp.load_method("visionzip").pruner
    assert candidates["fastv"].method.pruner == TopK(scorer=FastV())
    assert layers(candidates["fastv"]) == (2,)
    assert layers(candidates["pyramiddrop"]) == (2, 4, 6)


def test_variants_say_what_is_different(adapter: Adapter) -> None:
    candidates = made(adapter)
    entropy = candidates["entropyprune: source key"]
    assert entropy.origin == "variant"
    assert entropy.method.pruner == TopK(scorer=MatrixEntropy(source="key"))
    assert layers(entropy) == (2,)
    assert layers(candidates["entropyprune: layer 1"]) == (1,)
    assert candidates["vision-attention: tower layer 2"].method.pruner == TopK(scorer=VisionAttention(layer=2))
    assert candidates["framefusion: threshold 0.4 before layer 0"].method.pruner.at(0).model_dump() == {
        "threshold": 0.4
    }
    assert layers(candidates["pyramiddrop: layers 1, 2, 3"]) == (1, 2, 3)


def test_layers_of_the_tower_are_varied_where_the_method_reads_it(adapter: Adapter) -> None:
    found = {name: candidate for name, candidate in made(adapter).items() if name.startswith("entropy-tower")}
    assert "entropy-tower: tower layer 2" in found
    assert "entropy-tower: source value" in found
    for candidate in found.values():
        assert layers(candidate) == (0,)
        assert len(candidate.method.pruner.vision_layers) == 1


def test_methods_before_the_language_model_stay_there(adapter: Adapter) -> None:
    own = {name: layers(candidate) for name, candidate in made(adapter).items() if name.startswith("visionzip")}
    assert len(own) > 1
    assert set(own.values()) == {(0,)}


def test_one_factor_at_a_time_where_the_grid_is_large(adapter: Adapter) -> None:
    """Two layers times four kinds of states times two normalisations are more than eight."""
    names = [name for name in made(adapter) if name.startswith("entropyprune-reference")]
    sources = [f"entropyprune-reference: source {source}" for source in ("key", "value", "hidden")]
    assert names == ["entropyprune-reference", "entropyprune-reference: layer 1", *sources], (
        "the trace is entropyprune's"
    )
    tower = [made(adapter)[name].method.pruner.vision_layers for name in names]
    assert not any(tower), "a score of the vision tower belongs before the language model"
    few = [name for name in made(adapter, limit_per_method=3) if name.startswith("entropyprune-reference")]
    assert few == [*names[:2], "entropyprune-reference: source key"], "layers and fields take turns"


def test_what_a_selector_verifies_is_a_whole_grid(adapter: Adapter) -> None:
    """EntropyPrune is defined by the comparison of layers and states: two of these times four of those.

    Beside them stand its ways before layer 0; two of these are methods: entropyprune-tower and entropy-tower.
    """
    names = {name for name in made(adapter, limit_per_method=1) if name.startswith("entropyprune: ")}
    earlier = {name for name in names if name.startswith("entropyprune: layer 0, ")}
    assert earlier == {
        *(f"entropyprune: layer 0, share and diversity, tower layer {layer}" for layer in (0, 2, 4)),  # -1 is a method
        *(f"entropyprune: layer 0, entropy and diversity, tower layer {layer}" for layer in (0, 2, 4, 5)),
        *(f"entropyprune: layer 0, entropy, tower layer {layer}" for layer in (2, 4, 5)),  # 0 is a method
    }
    assert names - earlier == {
        f"entropyprune: {', '.join(filter(None, [layer, source]))}"
        for layer in ("", "layer 1")
        for source in ("", "source key", "source value", "source hidden")
        if layer or source
    }


def test_a_small_grid_is_whole(adapter: Adapter) -> None:
    tome = [name for name in made(adapter) if name.startswith("tome")]
    assert set(tome) == {
        "tome",
        "tome: tower layer 5",
        "tome: steps 1",
        "tome: steps 1, tower layer 5",
        "tome: steps 8",
        "tome: steps 8, tower layer 5",
    }


def test_published_tower_layers_that_the_tower_lacks_are_replaced(adapter: Adapter) -> None:
    """HiPrune's object layer is the ninth of 24: six layers have valid ones, too."""
    pruners = [c.method.pruner for name, c in made(adapter).items() if name.startswith("hiprune")]
    assert pruners
    for pruner in pruners:
        assert isinstance(pruner, HiPrune)
        assert pruner.object_layer in (2, 3, 4)
    assert "hiprune" not in made(adapter)
    assert "hiprune: object layer 2" in made(adapter)


def test_collapse_and_plateau_are_tried() -> None:
    deep = adapter_for(llava(tower=2, layers=16))
    mean = (3.0, 2.9, 2.8, 2.7, 2.6, 1.2, 0.3, *[0.3] * 9)
    curves = EntropyProfile(family="llava", num_layers=16, curves=(mean, mean))
    without = {layers(c) for name, c in made(deep, methods=["fastv"]).items() if name.startswith("fastv: layer")}
    found = {
        layers(c) for name, c in made(deep, methods=["fastv"], curves=curves).items() if name.startswith("fastv: layer")
    }
    assert found - without == {(5,), (7,)}, "the sharpest drop, and the first layer behind the plateau's start"
    entropy = made(deep, methods=["entropyprune"], curves=curves)
    assert layers(entropy["entropyprune"]) == (5,), "the selector's own layer is that of the curves"


def test_a_low_budget_excludes_late_layers(adapter: Adapter) -> None:
    low = LayerAverage(ratio=0.2)  # layer 1 of eight already costs 0.125, layer 2 0.25
    candidates, refused = default_candidates(adapter, low, visual=VISUAL)
    single = {layers(candidate) for candidate in candidates if len(layers(candidate)) == 1}
    assert single == {(0,), (1,)}
    names = {candidate.name for candidate in candidates}
    assert "fastv" not in names
    assert "fastv: layer 1" in names
    assert "fastv" not in refused
    assert "already average" in refused["pyramiddrop"]


def test_without_room_for_late_layers_the_reason_is_the_budgets(adapter: Adapter) -> None:
    candidates, refused = default_candidates(adapter, LayerAverage(ratio=0.1), visual=VISUAL)
    assert {layers(candidate)[0] for candidate in candidates} == {0}
    assert "16 visual tokens through the first 1 of 8 layers already average 2.0" in refused["fastv"]
    assert "random: layer 0" in {candidate.name for candidate in candidates}


def test_a_budget_is_met_for_pictures_of_all_sizes(adapter: Adapter) -> None:
    """A number of tokens is hard to meet for a large one (the layers before see more), a share for a small one."""
    eight: Any = {"budget": LayerAverage(tokens=8), "methods": ["fastv"]}
    small, both = (default_candidates(adapter, visual=visual, **eight) for visual in (16, (16, 40)))
    assert "fastv" in {candidate.name for candidate in small[0]}  # layer 2 of eight: 4 tokens of 16, but 10 of 40
    assert {layers(item) for item in both[0] if item.name.startswith("fastv")} == {(1,)}
    tenth = LayerAverage(ratio=0.14)
    assert default_candidates(adapter, tenth, methods=["fastv"], visual=160)[0]
    assert "fastv" in default_candidates(adapter, tenth, methods=["fastv"], visual=(16, 160))[1]


def test_a_budget_that_nothing_meets_refuses_everything(adapter: Adapter) -> None:
    candidates, refused = default_candidates(adapter, LayerAverage(ratio=0.01), visual=VISUAL)
    assert candidates == []
    assert {"random", "visionzip", "fastv"} <= set(refused)
    assert "cannot be met" in refused["random"]


def test_the_pruner_never_decides_the_count(adapter: Adapter) -> None:
    candidates = made(adapter, KeepRatio(ratio=0.25))
    assert candidates["evs"].method.budget == KeepRatio(ratio=0.25)
    _, refused = default_candidates(adapter, Adaptive(), visual=VISUAL)
    assert "leaves the count to the pruner" in refused["visionzip"]


@pytest.mark.slow
def test_budgets_in_flops_know_the_models_cost(adapter: Adapter) -> None:
    possible = made(adapter, FlopsReduction(percent=20, scope="decoder"))
    assert "fastv" in possible
    much = FlopsReduction(percent=62, scope="decoder")  # two thirds of the tokens are visual
    candidates, refused = default_candidates(adapter, much, visual=VISUAL, text=8)
    assert "visionzip" in {candidate.name for candidate in candidates}
    assert "the prefill cannot become 62 % cheaper" in refused["fastv"]
    assert "visionzip" in default_candidates(adapter, much, visual=VISUAL, text=40)[1], "a third is visual"


def test_a_model_without_a_tower_adapter_has_the_other_methods() -> None:
    other = adapter_for(CASES["aya_vision"].build())
    candidates, refused = default_candidates(other, HALF, visual=VISUAL)
    assert "does not say how its vision tower's patches become visual tokens" in refused["visionzip"]
    assert {"visionzip", "hiprune", "vision-attention", "vscan"} <= set(refused)
    assert {"divprune", "cdpruner", "random: layer 0"} <= {candidate.name for candidate in candidates}
    assert all(candidate.method.pruner.vision_layers == frozenset() for candidate in candidates)


def test_random_is_where_the_others_are(adapter: Adapter) -> None:
    candidates = made(adapter)
    chance = [candidate for candidate in candidates.values() if candidate.origin == "random"]
    assert {candidate.method.pruner.model_dump_json() for candidate in chance} == {RANDOM.model_dump_json()}
    used = Counter(layers(c) for c in candidates.values() if c.origin in ("variant", "composition", "named"))
    for one in [(0,), *(pair for pair, _ in used.most_common(3) if len(pair) == 1)]:
        assert one in {layers(candidate) for candidate in chance}
    assert sum(len(layers(candidate)) > 1 for candidate in chance) == 1
    alone, refused = default_candidates(adapter, HALF, methods=["visionzip"], visual=VISUAL, compositions=False)
    assert {"random: layer 0", "random: layers 2, 4, 6"} == {c.name for c in alone if c.origin == "random"}
    assert not refused


def test_scorers_are_composed_with_diversity_pruners(adapter: Adapter) -> None:
    composed = {name: c for name, c in made(adapter).items() if c.origin == "composition"}
    assert 8 <= len(composed) <= COMPOSITIONS
    assert composed["max_min over vision_attention, layer 0"].method.pruner == Pool(
        scorer=VisionAttention(), pruner=MaxMin()
    )
    assert composed["dpp over matrix_entropy hidden, layer 1"].method.pruner == Dpp(
        relevance=MatrixEntropy(source="hidden")
    )
    assert layers(composed["max_min over vision_attention, layer 1"]) == (1,)
    assert "dpp over fastv, layer 1" in composed
    assert "dpp over instruction, layer 0" not in composed, "it is cdpruner"
    assert "dpp over instruction, layer 0" in made(adapter, methods=["fastv"])
    assert not [c for c in made(adapter, compositions=False).values() if c.origin == "composition"]


def test_layers_of_compositions_are_those_the_budget_allows(adapter: Adapter) -> None:
    names = {n for n, c in made(adapter, LayerAverage(ratio=0.1)).items() if c.origin == "composition"}
    assert names == {
        "dpp over vision_attention, layer 0",
        "max_min over vision_attention, layer 0",
        "max_min over instruction, layer 0",
    }


def test_a_plugins_scorer_is_tuned_and_composed_like_ours(adapter: Adapter) -> None:
    """The example plugin declares what may be tuned beside its field; nothing here knows it."""
    candidates = made(adapter)
    assert {"centroid", "centroid: metric cosine", "centroid: layer 1"} <= set(candidates)
    assert "dpp over centroid_distance, layer 1" in candidates


def test_null_models_and_upper_bounds_only_if_named(adapter: Adapter) -> None:
    assert not any(name.startswith(("oracle", "norm-", "energy-")) for name in made(adapter))
    candidates = made(adapter, methods=["norm-key-small", "oracle"], compositions=False)
    assert {"norm-key-small", "norm-key-small: keep large", "oracle"} <= set(candidates)


def test_only_the_given_methods(adapter: Adapter, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(tp.load_method("fastv").model_copy(update={"label": None}).to_yaml())
    candidates = made(adapter, methods=["tome", str(file), "tome"], compositions=False)
    assert {name.partition(":")[0] for name in candidates} == {"tome", "mine", "random"}
    with pytest.raises(UnknownNameError, match="unknown method 'tomme'; did you mean 'tome'"):
        made(adapter, methods=["tomme"])
    with pytest.raises(MissingDataError):
        made(adapter, methods=[str(tmp_path / "other.yaml")])


def test_the_limit_is_at_least_one(adapter: Adapter) -> None:
    with pytest.raises(ConfigError, match="limit_per_method is 0; give 1 or more"):
        made(adapter, limit_per_method=0)
    assert len([n for n in made(adapter, limit_per_method=1) if n.startswith("scope")]) == 1


def test_a_method_that_does_not_fit_as_it_is_keeps_a_candidate_of_its_own(adapter: Adapter) -> None:
    """EntropyPrune's variants do not take the place of EntropyPrune as its code computes it."""
    candidates = made(adapter, LayerAverage(ratio=0.2), methods=["entropyprune", "entropyprune-reference"])
    assert {"entropyprune: layer 1", "entropyprune-reference: layer 1"} <= set(candidates)
    assert "entropyprune: layer 1, normalization none" not in candidates


def test_one_layer_leaves_the_methods_before_it() -> None:
    candidates, refused = default_candidates(adapter_for(llava(1, 1)), HALF, visual=VISUAL)
    assert {layers(candidate) for candidate in candidates} == {(0,)}
    assert "layer 1 is out of range: the model has 1 layers" in refused["fastv"]


def test_every_candidate_runs() -> None:
    """What was checked without running prunes a prompt, apart from methods that compare the frames of a video."""
    model = llava()
    case = CASES["llava"]
    inputs = case.batch(model, 1, "left").inputs
    kept: dict[str, list[int]] = {}
    failed: dict[str, str] = {}
    for candidate in made(adapter_for(model), KeepCount(tokens=5)).values():
        try:
            with torch.no_grad(), tp.apply(model, candidate.method) as run:
                model(**inputs)
            kept[candidate.name] = run.stages[-1].after
        except TokenPruneError as error:
            failed[candidate.name] = str(error)
    assert {name.partition(":")[0] for name in failed} == {"dycoke", "evs", "framefusion"}
    assert all("frames" in error for error in failed.values()), failed
    assert set(map(tuple, kept.values())) == {(5,)}
    assert len(kept) > 60


def test_stages_of_one_pruner_keep_their_number(adapter: Adapter) -> None:
    for name, candidate in made(adapter).items():
        pruner = candidate.method.pruner
        if isinstance(pruner, Stages):
            assert len(pruner.pruners) == len(layers(candidate)), name
