"""Verification of layers: the planted winner is chosen, told why, kept, and never used for another method."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import tokenprune as tp
from tests.support.tiny import CASES
from tokenprune.core.architecture import Architecture
from tokenprune.engine import measure_entropy
from tokenprune.engine.trials import calibrate, profile_cache
from tokenprune.errors import BusyModelError, ConfigError, LayerError, UnsupportedFeatureError
from tokenprune.models.presets import PRESETS
from tokenprune.pruners.stages import Stages
from tokenprune.pruners.topk import TopK
from tokenprune.run import choose_layers, verify_methods
from tokenprune.scorers.matrix_entropy import MatrixEntropy
from tokenprune.scorers.random import Random
from tokenprune.selectors.base import SelectorContext, Trial, TrialResult
from tokenprune.selectors.entropy_collapse import EntropyCollapse
from tokenprune.selectors.entropy_profile import EntropyProfile
from tokenprune.selectors.fixed import Fixed
from tokenprune.selectors.layer_trials import alternatives, candidate_layers, choose
from tokenprune.selectors.plateau import Plateau
from tokenprune.stats.clustered import difference

#: The shape of the digits model: drop before layer 2, plateau at layers 3 to 8 of 12.
SHAPE = [1.8, 1.5, 0.6, 0.3, 0.3, 0.3, 0.4, 0.4, 0.4, 0.6, 1.6, 1.8]
CURVES = EntropyProfile(family="toy", num_layers=12, curves=(tuple(SHAPE),) * 4)
PRUNER = TopK(scorer=MatrixEntropy())
VERIFIED = EntropyCollapse(verify=True, fields=("scorer.source",))

Compare = Callable[[Sequence[Trial]], list[TrialResult]]


def result(agreement: Sequence[float], divergence: float = 0.1, average: float = 20.0) -> TrialResult:
    return TrialResult(tuple(agreement), (divergence,) * len(agreement), average)


def refused(why: str = "it cannot run") -> TrialResult:
    return TrialResult((), (), math.nan, why)


def shares(right: int, samples: int = 32) -> list[float]:
    return [1.0] * right + [0.0] * (samples - right)


def source_of(trial: Trial) -> str:
    return str(trial.pruner.model_dump()["scorer"]["source"])


def planted(winner: tuple[int, str], right: int = 30, others: int = 12) -> Compare:
    """One combination of layer and states agrees most; the others leave early."""

    def compare(trials: Sequence[Trial]) -> list[TrialResult]:
        found = [(trial.layers[0], source_of(trial)) == winner for trial in trials]
        return [result(shares(right)) if good else result(shares(others // 4, 8)) for good in found]

    return compare


def model(
    compare: Compare | None,
    feasible: Callable[[int], bool] = lambda layer: True,
    curves: EntropyProfile = CURVES,
    kept: list[EntropyProfile] | None = None,
    budget: dict[str, Any] | None = None,
    selector: EntropyCollapse = VERIFIED,
) -> SelectorContext:
    """A model of 12 layers whose trials end as planted."""
    method = tp.Method(layers=selector, pruner=PRUNER, budget=budget or {"name": "keep_ratio", "ratio": 0.5})  # type: ignore[arg-type]
    without = compare is None
    return SelectorContext(
        "toy",
        12,
        measure_entropy=None if without else lambda: kept[-1] if kept else curves,
        pruner=PRUNER,
        compare=compare,
        refusal=None if without else lambda layers: None if feasible(layers[0]) else "there is no room",
        definition=method.model_dump(mode="json", exclude={"label"}),
        remember=None if kept is None else kept.append,
    )


# ---- which layers are verified -----------------------------------------------------------------------------------


def plateau(drop: int, last: int | None) -> Plateau:
    return Plateau(None if last is None else drop + 1, last, drop, 2.0, 0.5, 1.0, "")


@pytest.mark.parametrize(
    ("drop", "last", "feasible", "most", "expected"),
    [
        (2, 8, range(99), 8, [1, 2, 3, 4, 5, 6, 7, 8]),  # the window is 1 to 9: the first eight of it
        (2, 8, range(99), 3, [1, 2, 3]),
        (5, 7, range(99), 99, list(range(1, 12))),
        (5, 7, range(99), 5, [4, 5, 6, 7, 8]),
        (5, 7, range(99), 6, [3, 4, 5, 6, 7, 8]),  # 3 and 9 are equally near: the earlier one
        (5, 7, range(99), 7, [3, 4, 5, 6, 7, 8, 9]),
        (5, 7, (1, 2, 3), 2, [2, 3]),  # a budget that late layers cannot meet
        (5, None, range(99), 5, [4, 5, 6, 7, 8]),  # without a plateau: three layers behind the drop
        (1, 11, range(99), 99, list(range(1, 12))),  # never before layer 0, nor behind the last layer
        (11, None, range(99), 3, [9, 10, 11]),
        (2, 8, (), 8, []),
    ],
)
def test_the_layers_nearest_to_the_collapse(
    drop: int, last: int | None, feasible: Sequence[int], most: int, expected: list[int]
) -> None:
    found = candidate_layers(12, [layer for layer in range(1, 12) if layer in feasible], plateau(drop, last), most)
    assert found == expected


def test_every_layer_runs_with_every_alternative() -> None:
    seen: list[Trial] = []

    def compare(trials: Sequence[Trial]) -> list[TrialResult]:
        seen.extend(trials)
        return [result(shares(16)) for _ in trials[1:]] + [result(shares(20))]

    EntropyCollapse(verify=True, fields=("scorer.source",), most=3).select(model(compare))
    found = [(trial.layers, source_of(trial)) for trial in seen]
    assert found == [((layer,), name) for layer in (1, 2, 3) for name in ("query", "key", "value", "hidden")]
    seen.clear()
    EntropyCollapse(verify=True, most=3).select(model(compare))
    assert [(trial.layers, trial.pruner) for trial in seen] == [((layer,), PRUNER) for layer in (1, 2, 3)]


# ---- the choice --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("winner", [(1, "key"), (4, "query"), (8, "hidden")])
def test_the_planted_winner_is_found(winner: tuple[int, str]) -> None:
    choice = VERIFIED.select(model(planted(winner)))
    assert choice.layers == (winner[0],)
    assert choice.pruner == TopK(scorer=MatrixEntropy(source=winner[1]))  # type: ignore[arg-type]
    assert choice.reason.startswith(
        f"verified without labels: layer {winner[0]}, source {winner[1]} agrees with the unpruned model on 93.8 % of"
        " the answer tokens (95 % interval 79.9 % to 98.3 %, 32 samples), the best of 32 candidates (31 left early);"
        " no other saw all samples; collapse before layer 2: "
    )
    assert "low plateau from layer 3 on" in choice.reason


def test_the_runner_up_is_named_with_the_paired_difference() -> None:
    def compare(trials: Sequence[Trial]) -> list[TrialResult]:
        ends = {(3, "hidden"): result(shares(30)), (4, "query"): result(shares(27))}
        return [ends.get((trial.layers[0], source_of(trial)), result(shares(1, 8))) for trial in trials]

    reason = VERIFIED.select(model(compare)).reason
    gain = difference([one - other for one, other in zip(shares(30), shares(27), strict=True)])
    words = f"(difference +9.4 points, 95 % interval {100 * gain.low:+.1f} to {100 * gain.high:+.1f})"
    assert f"next layer 4, source query with 84.4 % {words}" in reason


def trials(count: int) -> list[Trial]:
    return [Trial((layer + 1,), PRUNER) for layer in range(count)]


def test_ties_go_to_the_cheaper_then_to_the_smaller_divergence() -> None:
    cheaper = [result(shares(30), 0.1, 20.0), result(shares(30), 0.2, 15.0), result(shares(29), 0.0, 10.0)]
    assert choose(trials(3), cheaper) == (1, 0)
    equal = [result(shares(30), 0.3, 20.0), result(shares(30), 0.1, 20.3), result(shares(30), 0.0, 21.0)]
    assert choose(trials(3), equal) == (1, 0)  # 20.3 is within 2 % of the cheapest, 21 is not
    same = [result(shares(30))] * 3
    assert choose(trials(4), [*same, result(shares(1))])[0] == 0


def test_who_left_early_is_not_chosen() -> None:
    """Eight of eight right is a larger share than 30 of 32, but the race has judged the two."""
    assert choose(trials(2), [result(shares(8, 8)), result(shares(30))]) == (1, None)


def test_a_refused_trial_is_passed_over_and_counted() -> None:
    def compare(trials: Sequence[Trial]) -> list[TrialResult]:
        return [refused() if trial.layers[0] < 3 else result(shares(20 + trial.layers[0])) for trial in trials]

    kept: list[EntropyProfile] = [CURVES]
    choice = EntropyCollapse(verify=True, most=4).select(model(compare, kept=kept))
    assert choice.layers == (4,)
    assert "the best of 4 candidates (2 refused)" in choice.reason
    (verdict,) = kept[-1].verdicts
    assert [item.refused for item in verdict.candidates] == ["it cannot run"] * 2 + [None] * 2
    assert [item.agreement for item in verdict.candidates] == [None, None, 23 / 32, 24 / 32]


@pytest.mark.parametrize(
    ("compare", "feasible", "words"),
    [
        (lambda trials: [refused("no heads") for _ in trials], True, "none of the 32 candidates can run: no heads"),
        (planted((1, "key")), False, "the budget cannot be met before any layer from 1 on: there is no room"),
    ],
    ids=["all refused", "no budget"],
)
def test_where_nothing_can_be_verified_the_rule_decides_and_says_so(
    compare: Compare, feasible: bool, words: str
) -> None:
    choice = VERIFIED.select(model(compare, lambda layer: feasible))
    assert choice.layers == (2,)
    assert choice.reason.startswith(f"nothing was verified: {words}")
    assert choice.pruner is None
    flat = CURVES.model_copy(update={"curves": ((2.0,) * 12,) * 4})
    with pytest.raises(LayerError, match=words):
        VERIFIED.select(model(compare, lambda layer: feasible, flat))


def test_all_that_agree_completely_are_no_mistake() -> None:
    """A mild budget changes no answer: the cheapest is taken."""

    def compare(trials: Sequence[Trial]) -> list[TrialResult]:
        return [result(shares(32), average=20.0 + trial.layers[0]) for trial in trials]

    choice = VERIFIED.select(model(compare))
    assert choice.layers == (1,)
    assert "all 32 agree equally often: taken by cost, then divergence" in choice.reason


def test_all_that_agree_equally_badly_say_so() -> None:
    def compare(trials: Sequence[Trial]) -> list[TrialResult]:
        return [result(shares(2), divergence=abs(trial.layers[0] - 6)) for trial in trials]

    choice = VERIFIED.select(model(compare))
    assert choice.layers == (6,)
    assert "agrees with the unpruned model on 6.2 %" in choice.reason
    assert "all 32 agree equally often: taken by cost, then divergence" in choice.reason


def test_without_calibration_it_is_the_published_layer() -> None:
    """Of this very model."""
    for preset, model, layer in (("llava-1.5-7b", "LLaVA-1.5-7B", 2), ("qwen2.5-vl-7b", "Qwen2.5-VL-7B", 1)):
        architecture = Architecture.of(PRESETS[preset].config())
        known = SelectorContext(architecture.family, architecture.depth, pruner=PRUNER, architecture=architecture)
        choice = tp.load_method("entropyprune").layers.select(known)
        assert choice.layers == (layer,)
        assert choice.pruner is None
        assert choice.reason == f"no calibration samples were given; took layer {layer}, published for {model}"


@pytest.mark.parametrize(
    ("pruner", "fields", "words"),
    [
        (PRUNER, ("scorer.sauce",), "has no tunable field 'scorer.sauce'"),
        (TopK(scorer=Random()), ("scorer.source",), "has no tunable field 'scorer.source'"),
        (PRUNER, ("scorer.backend",), "has no tunable field 'scorer.backend'"),
        # the other states have no final norm
        (
            TopK(scorer=MatrixEntropy(source="hidden", final_norm=True)),
            ("scorer.source", "scorer.normalization"),
            "nothing to verify in scorer.source: its only value is 'hidden'; remove it from the selector's fields",
        ),
    ],
)
def test_fields_that_have_no_alternatives_are_errors(pruner: TopK, fields: tuple[str, ...], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        alternatives(pruner, fields)


def test_fields_are_for_verification() -> None:
    with pytest.raises(ConfigError, match=r"'fields': scorer\.source would not be verified: set verify to true"):
        EntropyCollapse(fields=("scorer.source",))


# ---- before the language model, and in two stages ----------------------------------------------------------------

DIVERSE = {"name": "quality_dpp", "quality": {"name": "matrix_entropy", "source": "hidden", "tower_layer": -1}}
PATH = EntropyCollapse(
    verify=True,
    most=2,
    before=(
        {"pruner": DIVERSE, "fields": ["quality.tower_layer"]},  # type: ignore[arg-type]
        {"pruner": {"name": "topk", "scorer": {"name": "norm", "tower_layer": 0}}},  # type: ignore[arg-type]
    ),
    two_stages=True,
)


def along(compare: Compare | None, tower: int | None = 6, **changes: Any) -> SelectorContext:
    return replace(model(compare, selector=PATH, **changes), tower_layers=tower)


def named(answers: dict[str, list[float]], seen: list[str] | None = None) -> Compare:
    """Agreements by the trial's name; half of the samples for the others."""

    def compare(trials: Sequence[Trial]) -> list[TrialResult]:
        if seen is not None:
            seen.extend(trial.name for trial in trials)
        return [result(answers.get(trial.name, shares(16))) for trial in trials]

    return compare


def test_the_whole_path_is_verified() -> None:
    """The towers layers that are worth trying, layers round the collapse, and both; with six layers 1/3 is layer 2."""
    seen: list[str] = []
    PATH.select(along(named({}, seen)))
    assert seen == [
        "layer 0, quality_dpp, tower layer -1",
        "layer 0, quality_dpp, tower layer 0",
        "layer 0, quality_dpp, tower layer 2",
        "layer 0, quality_dpp, tower layer 4",
        "layer 0, topk",
        "layer 1",
        "layer 2",
        "layers 0 and 4, quality_dpp, then the method's own pruner",
    ]


def test_the_standard_way_stays_unless_another_is_clearly_better() -> None:
    standard, other = "layer 0, quality_dpp, tower layer -1", "layer 0, quality_dpp, tower layer 2"
    close = PATH.select(along(named({standard: shares(28), other: shares(30)})))
    assert close.layers == (0,)
    assert close.pruner == PATH.before[0].pruner
    assert "the standard way, and none is clearly better of 8 candidates" in close.reason
    clear = PATH.select(along(named({standard: shares(20), other: shares(30)})))
    assert clear.pruner != close.pruner
    assert f"{other} agrees with the unpruned model on 93.8 %" in clear.reason
    assert "the best of 8 candidates" in clear.reason


def test_a_later_layer_and_two_stages_can_win() -> None:
    late = PATH.select(along(named({"layer 2": shares(31)})))
    assert (late.layers, late.pruner) == ((2,), PRUNER)
    both = PATH.select(along(named({"layers 0 and 4, quality_dpp, then the method's own pruner": shares(31)})))
    assert both.layers == (0, 4)
    assert both.pruner == Stages(pruners=(PATH.before[0].pruner, PRUNER))


def test_the_promise_is_corrected_for_the_pick() -> None:
    """Many that are right by chance: the best of them promises more than it keeps."""
    noise = torch.Generator().manual_seed(0)
    lucky = {f"layer {layer}": (torch.rand(32, generator=noise) < 0.5).double().tolist() for layer in range(1, 12)}
    selector = EntropyCollapse(verify=True, most=11)
    choice = selector.select(model(named(lucky), selector=selector))
    assert choice.promise is not None
    assert choice.promise.agreement == max(sum(values) / 32 for values in lucky.values())
    assert choice.promise.corrected < choice.promise.agreement - 0.03
    assert choice.promise.low < choice.promise.corrected < choice.promise.high
    assert (choice.promise.samples, choice.promise.candidates) == (32, 11)
    assert f"corrected for having been picked {100 * choice.promise.corrected:.1f} %" in choice.reason


def test_a_verdict_on_the_path_is_kept_and_followed() -> None:
    kept = [CURVES]
    first = PATH.select(along(named({"layer 0, topk": shares(31)}), kept=kept))
    again = PATH.select(along(failing, kept=kept))
    assert again == first
    assert again.promise is not None
    assert PATH.select(along(failing, kept=[EntropyProfile.model_validate_json(kept[-1].model_dump_json())])) == first


def test_a_budget_that_no_layer_of_the_language_model_meets_is_met_before_it() -> None:
    choice = PATH.select(along(named({}), feasible=lambda layer: layer == 0))
    assert choice.layers == (0,)
    assert "of 6 candidates" in choice.reason  # the second stage is feasible here: its first layer is 0


def test_without_verification_it_is_the_standard_way() -> None:
    """Where the tower can be read; else the rule and the fallback decide as before."""
    choice = PATH.select(along(None))
    assert (choice.layers, choice.pruner) == ((0,), PATH.before[0].pruner)
    assert choice.reason == "no calibration samples were given; took the standard way: before layer 0, quality_dpp"
    blind = PATH.model_copy(update={"fallback": 3}).select(along(None, tower=None))
    assert (blind.layers, blind.pruner) == ((3,), None)


@pytest.mark.parametrize(
    ("pruner", "words"),
    [
        ({"name": "topk", "scorer": {"name": "fastv"}}, "topk reads attention of the layer before layer 0"),
        ({"name": "topk", "scorer": {"name": "matrix_entropy"}}, "topk reads query of the layer before layer 0"),
        ({"name": "stages", "pruners": [DIVERSE, DIVERSE]}, "2 pruners for pruning before 1 layers"),
    ],
)
def test_a_way_reads_what_exists_before_layer_0(pruner: dict[str, Any], words: str) -> None:
    """Otherwise each of its trials would be refused, and the race would pass over it silently."""
    with pytest.raises(ConfigError, match=words):
        EntropyCollapse(verify=True, before=({"pruner": pruner},))  # type: ignore[arg-type]


@pytest.mark.parametrize("fields", [(), ("quality.tower_layer",)])
def test_a_way_names_layers_that_the_tower_has(fields: tuple[str, ...]) -> None:
    far = {**DIVERSE, "quality": {"name": "matrix_entropy", "source": "hidden", "tower_layer": 9}}
    selector = EntropyCollapse(verify=True, before=({"pruner": far, "fields": fields},))  # type: ignore[arg-type]
    words = "quality_dpp of 'before' reads layer 9 of the vision tower, which has 6 layers; use -6 to 5"
    for check in (selector.known_layers, selector.select):
        with pytest.raises(LayerError, match=words):
            check(replace(model(failing, selector=selector), tower_layers=6))
    selector.known_layers(replace(model(failing, selector=selector), tower_layers=None))  # it cannot be said


def test_one_sample_has_no_interval() -> None:
    reason = VERIFIED.select(model(lambda trials: [result([1.0]) for _ in trials])).reason
    assert "100.0 % of the answer tokens (1 sample, so there is no interval), the best of 32 candidates;" in reason
    assert "(difference +0.0 points);" in reason
    assert "inf" not in reason
    assert "corrected" not in reason


def test_every_trial_has_a_name_of_its_own() -> None:
    """The reason, the table of a profile and a tune name trials; entropyprune has two ways with one pruner."""
    selector = tp.load_method("entropyprune").layers
    trials = selector.earlier_trials(24)
    names = [trial.name for trial in trials]
    assert len(set(names)) == len(names) == 12
    assert names[0] == "layer 0, share and diversity, tower layer -1"
    assert "layer 0, entropy and diversity, tower layer 0" in names
    assert "layer 0, entropy, tower layer 8" in names
    same = tuple(
        {"pruner": {"name": "topk", "scorer": {"name": name, "tower_layer": 0}}} for name in ("energy", "norm")
    )
    with pytest.raises(ConfigError, match="'before' has two pruners that are called 'topk': give each a label"):
        EntropyCollapse(verify=True, before=same)  # type: ignore[arg-type]


def test_two_stages_may_be_all_that_a_budget_allows() -> None:
    """A schedule of two stages: no single stage can have it."""
    known = replace(along(named({})), refusal=lambda layers: None if len(layers) == 2 else "two stages, please")
    choice = PATH.select(known)
    assert choice.layers == (0, 4)
    assert isinstance(choice.pruner, Stages)
    assert "of 1 candidates" in choice.reason


def test_a_small_model_needs_no_fallback_where_there_is_a_standard_way() -> None:
    selector = PATH.model_copy(update={"fallback": 12})
    selector.known_layers(along(None))
    with pytest.raises(LayerError, match="fallback layer 12 is out of range"):
        selector.known_layers(along(None, tower=None))


def test_ways_are_for_verification() -> None:
    with pytest.raises(ConfigError, match="'before' would not be verified: set verify to true"):
        EntropyCollapse(before=({"pruner": DIVERSE},))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="'two_stages' begins with the first pruner of 'before': name one there"):
        EntropyCollapse(verify=True, two_stages=True)


def test_entropyprune_runs_along_the_path() -> None:
    """On a real model: what was verified is what is applied, at equal cost."""
    built, batches = tiny()
    method = tp.load_method("entropyprune", average_ratio=0.5)
    with torch.no_grad(), tp.apply(built, method, calibration=batches) as run:
        built(**batches[0])
        kept = [stage.kept.tolist() for stage in run.stages]
    choice = choose_layers(built, method, batches)
    assert choice.promise is not None
    assert choice.promise.candidates == 10
    fixed = method.model_copy(update={"layers": Fixed(layers=choice.layers), "pruner": choice.pruner or method.pruner})
    with torch.no_grad(), tp.apply(built, fixed) as again:
        built(**batches[0])
    assert [stage.kept.tolist() for stage in again.stages] == kept


# ---- what is kept ------------------------------------------------------------------------------------------------


def failing(trials: Sequence[Trial]) -> list[TrialResult]:
    pytest.fail("it ran again")


def verdict_file(path: Path, selector: EntropyCollapse = VERIFIED, **changes: Any) -> EntropyCollapse:
    """A profile file with a verdict on layer 4 with hidden states, and the selector that reads it."""
    kept = [CURVES]
    selector.select(model(planted((4, "hidden")), kept=kept, selector=selector, **changes))
    kept[-1].save(path)
    return selector.model_copy(update={"profile_file": str(path)})


def test_a_verdict_in_the_file_is_used_without_running_anything(tmp_path: Path) -> None:
    reader = verdict_file(tmp_path / "p.json")
    for compare in (None, failing):
        choice = reader.select(model(compare, selector=reader))
        assert choice.layers == (4,)
        assert choice.pruner == TopK(scorer=MatrixEntropy(source="hidden"))
        assert choice.reason.endswith(f"(verdict in {tmp_path / 'p.json'})")


def test_the_file_reads_back_and_old_files_load(tmp_path: Path) -> None:
    verdict_file(tmp_path / "p.json")
    read = EntropyProfile.load(tmp_path / "p.json")
    read.save(tmp_path / "again.json")
    assert EntropyProfile.load(tmp_path / "again.json") == read
    (verdict,) = read.verdicts
    assert len(verdict.candidates) == 32
    assert sum(item.samples for item in verdict.candidates) == 32 + 31 * 8
    old = json.loads((tmp_path / "p.json").read_text())
    del old["verdicts"]
    (tmp_path / "old.json").write_text(json.dumps(old))
    assert EntropyProfile.load(tmp_path / "old.json").verdicts == ()


@pytest.mark.parametrize(
    "changes",
    [
        {"budget": {"name": "keep_ratio", "ratio": 0.25}},
        {"budget": {"name": "layer_average", "ratio": 0.5}},
    ],
)
def test_a_verdict_holds_for_its_budget_only(tmp_path: Path, changes: dict[str, Any]) -> None:
    reader = verdict_file(tmp_path / "p.json")
    choice = reader.select(model(None, selector=reader, **changes))
    assert choice.layers == (2,)
    assert choice.reason.startswith(f"{tmp_path / 'p.json'} has no verdict on this method and budget; collapse before")
    verified = reader.select(model(planted((5, "value")), selector=reader, **changes))
    assert verified.layers == (5,)
    assert "has no verdict on this method and budget; verified without labels" in verified.reason


@pytest.mark.parametrize("change", [{"most": 7}, {"fields": ()}, {"share": 0.2}, {"fallback": 3}])
def test_a_verdict_holds_for_its_selector_only(tmp_path: Path, change: dict[str, Any]) -> None:
    reader = verdict_file(tmp_path / "p.json").model_copy(update=change)
    assert "has no verdict" in reader.select(model(None, selector=reader)).reason


@pytest.mark.parametrize(
    "change", [{"pruner": {"name": "topk", "scorer": {"name": "norm"}}}, {"positions": "renumbered"}]
)
def test_a_verdict_holds_for_its_pruner_and_positions_only(tmp_path: Path, change: dict[str, Any]) -> None:
    reader = verdict_file(tmp_path / "p.json")
    known = model(None, selector=reader)
    assert known.definition is not None
    other = SelectorContext("toy", 12, pruner=PRUNER, definition={**known.definition, **change})
    assert "has no verdict" in reader.select(other).reason


def test_a_verdict_of_another_family_is_not_used(tmp_path: Path) -> None:
    reader = verdict_file(tmp_path / "p.json")
    known = model(None, selector=reader)
    other = SelectorContext("llava", 12, pruner=PRUNER, definition=known.definition)
    with pytest.raises(LayerError, match="of a model of the family 'toy', this one is 'llava'"):
        reader.select(other)


def test_a_verdict_of_other_weights_is_not_used(tmp_path: Path) -> None:
    """Where it is unknown of which weights it is, the reason says so."""
    path = tmp_path / "p.json"
    reader = verdict_file(path)
    known = model(None, selector=reader)
    EntropyProfile.load(path).model_copy(update={"model": "2-these"}).save(path)
    same = replace(known, fingerprint=lambda: "2-these")
    assert "verdict in" in reader.select(same).reason
    other = replace(known, fingerprint=lambda: "2-others")
    found = reader.select(other).reason
    assert found.startswith(f"{path} was made with other weights; {path} has no verdict on this method and budget")
    rule = EntropyCollapse(profile_file=str(path))
    assert "other weights" not in rule.select(same).reason
    assert rule.select(other).reason.startswith(f"{path} was made with other weights; collapse before layer 2")
    unknown = f"whether {path} was made with these weights is unknown"
    for doubtful in (replace(known, fingerprint=lambda: None), replace(known, fingerprint=lambda: "1-otherwise")):
        choice = reader.select(doubtful)
        assert choice.layers == (4,)
        assert choice.reason.endswith(f"(verdict in {path}; {unknown})")
        assert rule.select(doubtful).reason.startswith(unknown)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda verdict: verdict.update(layers=[7.5]), "is not an entropy profile"),
        (lambda verdict: verdict.update(layers=[11]), "is none of the candidates that ran"),
        (lambda verdict: verdict.update(setting="source heads"), "is none of the candidates that ran"),
        (lambda verdict: verdict.pop("candidates"), "is not an entropy profile"),
        (lambda verdict: verdict.update(extra=1), "is not an entropy profile"),
        (
            lambda verdict: (
                verdict.update(setting="source heads"),
                verdict["candidates"].append({"layers": [4], "setting": "source heads", "samples": 3}),
                verdict["pruner"]["scorer"].update(source="heads"),
            ),
            "the pruner of a verdict: scorer.source",
        ),
        (
            lambda verdict: (
                verdict.update(layers=[40]),
                verdict["candidates"].append({"layers": [40], "setting": verdict["setting"], "samples": 3}),
            ),
            "names layer 40, and the model has 12 layers",
        ),
    ],
)
def test_a_damaged_verdict_is_an_error(tmp_path: Path, damage: Callable[[dict[str, Any]], Any], words: str) -> None:
    reader = verdict_file(tmp_path / "p.json")
    data = json.loads((tmp_path / "p.json").read_text())
    damage(data["verdicts"][0])
    (tmp_path / "p.json").write_text(json.dumps(data))
    with pytest.raises((ConfigError, LayerError), match=words):
        reader.select(model(None, selector=reader))


def test_what_was_verified_is_remembered() -> None:
    kept = [CURVES]
    first = VERIFIED.select(model(planted((4, "hidden")), kept=kept))
    assert VERIFIED.select(model(failing, kept=kept)) == first
    other = VERIFIED.select(model(planted((3, "key")), kept=kept, budget={"name": "keep_ratio", "ratio": 0.25}))
    assert other.layers == (3,)
    assert len(kept[-1].verdicts) == 2
    assert VERIFIED.select(model(failing, kept=kept)) == first


# ---- a real model ------------------------------------------------------------------------------------------------


def tiny() -> tuple[Any, list[dict[str, torch.Tensor]]]:
    case = CASES["llava"]
    built = case.build()
    return built, [case.batch(built, 1, "none", seed=seed).inputs for seed in range(4)]


def entropyprune(tokens: int = 3) -> tp.Method:
    """EntropyPrune in the language model alone."""
    method = tp.load_method("entropyprune", keep_tokens=tokens)
    return method.model_copy(
        update={"layers": method.layers.model_copy(update={"before": (), "two_stages": False}), "label": "decoder"}
    )


def test_a_method_runs_with_the_verified_layer_and_states() -> None:
    built, batches = tiny()
    method = entropyprune()
    with torch.no_grad(), tp.apply(built, method, calibration=batches) as run:
        built(**batches[0])
        applied = [stage.layer for stage in run.stages]
    choice = choose_layers(built, method, batches)
    assert applied == list(choice.layers) == list(run.choice.layers)
    assert choice.reason.startswith("verified without labels: layer ")
    fixed = tp.Method(
        layers={"name": "fixed", "layers": choice.layers},  # type: ignore[arg-type]
        pruner=choice.pruner,  # type: ignore[arg-type]
        budget=method.budget,
    )
    with torch.no_grad(), tp.apply(built, fixed) as again:
        built(**batches[0])
    assert again.stages[0].kept.tolist() == run.stages[0].kept.tolist()


def test_the_verdict_is_the_table_of_direct_comparisons(tmp_path: Path) -> None:
    """Every candidate's agreement is that of the pruned model's first token with the unpruned one's."""
    built, batches = tiny()
    method = entropyprune()
    profile, choices = verify_methods(built, {"it": method, "passed over": tp.load_method("random")}, batches)
    assert set(choices) == {"it"}
    (verdict,) = profile.verdicts
    with torch.no_grad():
        unpruned = [int(built(**inputs).logits[0, -1].argmax()) for inputs in batches]
    for item in verdict.candidates:
        assert item.setting.startswith("source ")
        fixed = tp.Method(
            layers={"name": "fixed", "layers": list(item.layers)},  # type: ignore[arg-type]
            pruner=TopK(scorer=MatrixEntropy(source=item.setting.removeprefix("source "))),
            budget=method.budget,
        )
        with torch.no_grad(), tp.apply(built, fixed):
            found = [int(built(**inputs).logits[0, -1].argmax()) for inputs in batches[: item.samples]]
        right = [a == b for a, b in zip(found, unpruned, strict=False)]
        assert item.agreement == sum(right) / len(right)
    profile.save(tmp_path / "p.json")
    layers = method.layers.model_copy(update={"profile_file": str(tmp_path / "p.json")})
    read = choose_layers(built, method.model_copy(update={"layers": layers}))
    assert (read.layers, read.pruner) == (choices["it"].layers, choices["it"].pruner)


def test_a_second_apply_pays_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(profile_cache, "user_cache_path", lambda name: tmp_path)
    built, batches = tiny()
    first = choose_layers(built, entropyprune(), batches)
    monkeypatch.setattr(calibrate, "run_race", lambda *_, **more: pytest.fail("it ran again"))
    assert choose_layers(built, entropyprune(), batches) == first
    (file,) = (tmp_path / "entropy").iterdir()
    assert len(EntropyProfile.load(file).verdicts) == 1
    with pytest.raises(pytest.fail.Exception):
        choose_layers(built, entropyprune(2), batches)


@pytest.mark.slow
def test_two_runs_that_remember_at_once_keep_both_verdicts(tmp_path: Path) -> None:
    built, batches = tiny()
    adapter = tp.adapters.adapter_for(built)
    curves = measure_entropy(built, batches, cache=tmp_path)
    both = verify_methods(built, {"a": entropyprune(), "b": entropyprune(2)}, batches)[0].verdicts
    for verdict in both:
        calibrate.remember_verdicts(adapter, batches, curves.with_verdicts(verdict), cache=tmp_path)
    assert measure_entropy(built, batches, cache=tmp_path).verdicts == both


def test_a_model_that_prunes_is_not_verified() -> None:
    built, batches = tiny()
    with tp.apply(built, tp.load_method("random")), pytest.raises(BusyModelError):
        verify_methods(built, {"it": entropyprune()}, batches)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_curves_that_are_not_finite_are_an_error(tmp_path: Path, value: float) -> None:
    """In a file, and as they are measured: the sharpest drop would be before the first layer that holds NaN."""
    curves = [[1.8, value, 0.6, 0.3]]
    (tmp_path / "p.json").write_text(json.dumps({"family": "llava", "num_layers": 4, "curves": curves}))
    with pytest.raises(ConfigError, match="a curve holds NaN or infinity"):
        EntropyProfile.load(tmp_path / "p.json")
    built, (inputs, *_) = tiny()
    spoilt = {**inputs, "pixel_values": inputs["pixel_values"].clone().fill_(value)}
    with pytest.raises(UnsupportedFeatureError, match="hold NaN or infinity behind layer 0 of the vision tower"):
        measure_entropy(built, [inputs, spoilt], cache=False)


def test_a_calibration_sample_without_a_picture_is_an_error() -> None:
    """Next to one with a picture in the same batch, too. It has no entropy, and agrees whatever is dropped."""
    case = CASES["llava"]
    built: Any = case.build()
    inputs = case.batch(built, 2, "none").inputs
    ids = inputs["input_ids"].clone()
    ids[1][ids[1] == built.config.image_token_id] = 7
    mixed = {**inputs, "input_ids": ids, "pixel_values": inputs["pixel_values"][:1]}
    with pytest.raises(UnsupportedFeatureError, match=r"1 of the 2 samples of a .* have no visual tokens"):
        choose_layers(built, entropyprune(), [inputs, mixed])


def test_a_schedule_of_several_stages_is_the_reason() -> None:
    case = CASES["llava"]
    network = case.build()
    method = tp.Method(
        layers=VERIFIED.model_copy(update={"fallback": 1}),
        pruner=PRUNER,
        budget={"name": "keep_schedule", "ratios": [0.5, 0.3]},  # type: ignore[arg-type]
    )
    choice = choose_layers(network, method, case.inputs(network))
    assert (
        "the budget cannot be met before any layer from 1 on: a schedule of 2 stages for pruning before 1"
        in choice.reason
    )
