"""Another pruner at every stage: each sees what it would see alone, and configurations that do not fit are refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import tokenprune as tp
from tests.support.literal import Recording, record
from tests.support.tiny import CASES
from tokenprune.errors import ConfigError, LayerError
from tokenprune.experiment.config import reseed
from tokenprune.measure.estimate import estimate
from tokenprune.pruners.stages import Stages

FASTV = {"name": "topk", "scorer": {"name": "fastv"}}
ENTROPY = {"name": "topk", "scorer": {"name": "matrix_entropy", "source": "query"}}
SCOPE = {"name": "scope"}
MAX_MIN = {"name": "max_min"}


def method(layers: list[int], pruner: Any, tokens: list[int]) -> tp.Method:
    return tp.Method.from_dict(
        {
            "layers": {"name": "fixed", "layers": layers},
            "pruner": pruner,
            "budget": {"name": "keep_schedule", "tokens": tokens},
        }
    )


def stages(*pruners: Any) -> dict[str, Any]:
    return {"name": "stages", "pruners": list(pruners)}


def kept(recording: Recording, made: tp.Method) -> list[list[list[int]]]:
    """Positions kept after each stage, per sample."""
    with torch.no_grad(), tp.apply(recording.model, made) as run:
        recording.model(**recording.inputs)
    return [[[i for i in row if i >= 0] for row in stage.kept.tolist()] for stage in run.stages]


@pytest.mark.parametrize(("name", "variant"), [("llava", "ragged"), ("qwen2_5_vl", "multi")])
def test_the_same_pruner_everywhere_is_that_pruner(name: str, variant: Any) -> None:
    recording = record(name, variant, batch=3)
    whole = sum(len(image) for image in recording.image_positions[0])
    tokens = [whole - 2, whole - 4, 3]
    for pruner, layers in ((FASTV, [1, 2, 3]), (ENTROPY, [1, 2, 3]), (MAX_MIN, [0, 1, 3])):
        assert kept(recording, method(layers, stages(pruner, pruner, pruner), tokens)) == kept(
            recording, method(layers, pruner, tokens)
        )


def test_each_stage_keeps_what_its_pruner_keeps() -> None:
    """The first as alone; the second as after a first stage that was told to keep just the same."""
    recording = record("llava", "multi", batch=2)
    first, second = kept(recording, method([0, 2], stages(SCOPE, FASTV), [12, 5]))
    assert first == kept(recording, method([0], SCOPE, [12]))[0]
    chosen = []
    for sample, images in enumerate(recording.image_positions):
        places = [position for image in images for position in image]
        chosen.append(torch.tensor([1.0 if position in first[sample] else 0.0 for position in places]))
    told = {"name": "topk", "scorer": {"name": "annotation", "field": "chosen"}}
    for last in (FASTV, ENTROPY, MAX_MIN):
        made = method([0, 2], stages(told, last), [12, 5])
        with torch.no_grad(), tp.apply(recording.model, made) as run:
            run.annotate(chosen=chosen)
            recording.model(**recording.inputs)
        assert run.stages[0].kept.tolist() == first
        assert run.stages[1].kept.tolist() == kept(recording, method([0, 2], stages(SCOPE, last), [12, 5]))[1]
    assert all(set(after) <= set(before) for after, before in zip(second, first, strict=True))


def test_annotations_of_a_ragged_batch_at_a_later_stage() -> None:
    """Where samples lose different numbers, row 0 holds nothing any more; unused slots of the context stand on it."""
    recording = record("llava", "ragged", batch=3)
    places = [[position for image in images for position in image] for images in recording.image_positions]
    told = {"name": "topk", "scorer": {"name": "annotation", "field": "late"}}
    made = tp.Method.from_dict(
        {
            "layers": {"name": "fixed", "layers": [1, 2]},
            "pruner": told,
            "budget": {"name": "keep_schedule", "ratios": [0.5, 0.25]},
        }
    )
    with torch.no_grad(), tp.apply(recording.model, made) as run:
        run.annotate(late=[torch.arange(len(row)) for row in places])
        recording.model(**recording.inputs)
    counts = [stage.after for stage in run.stages]
    assert len(set(counts[0])) > 1  # ragged after the first stage
    for stage in run.stages:
        for images, row in zip(recording.image_positions, stage.kept.tolist(), strict=True):
            left = [position for position in row if position >= 0]
            # of every image its last tokens: they have its highest values
            assert left == [p for image in images for p in image[len(image) - sum(q in left for q in image) :]]


def test_only_what_a_stage_needs_is_observed() -> None:
    """Nothing before layer 0 and nothing for hidden states, although another stage reads attention."""
    recording = record("llava")
    with tp.apply(recording.model, method([0, 2, 3], stages(SCOPE, MAX_MIN, FASTV), [12, 9, 4])):
        hooked: set[int] = set()

        def look(*_: Any) -> None:
            for number, layer in enumerate(recording.model.get_decoder().layers):
                if layer.self_attn.q_proj._forward_hooks:
                    hooked.add(number)

        watch = recording.model.get_decoder().layers[1].register_forward_pre_hook(look)
        with torch.no_grad():
            recording.model(**recording.inputs)
        watch.remove()
    assert hooked == {2}


def test_a_pruner_that_shares_between_images_beside_one_that_does_not() -> None:
    """Frames of a video are one image; counts are exact at both stages."""
    recording = record("llava", "multi", batch=2)
    first, second = kept(recording, method([0, 2], stages({"name": "evs"}, FASTV), [11, 6]))
    assert [len(row) for row in first] == [11, 11]
    assert [len(row) for row in second] == [6, 6]


@pytest.mark.parametrize("layers", [[0, 2], [1, 3]])
def test_generation_with_and_without_a_cache(layers: list[int]) -> None:
    recording = record("llava", "ragged", batch=3)
    found = []
    for cache in (True, False):
        made = method(layers, stages({"name": "visionzip", "contextual": 0.5}, FASTV), [9, 4])
        with torch.no_grad(), tp.apply(recording.model, made):
            found.append(
                recording.model.generate(**recording.inputs, max_new_tokens=4, do_sample=False, use_cache=cache)
            )
    assert torch.equal(found[0], found[1])


@pytest.mark.parametrize(
    ("layers", "pruners", "tokens", "error", "message"),
    [
        ([0, 2], [SCOPE], [9, 4], ConfigError, r"1 pruners for pruning before 2 layers \(0, 2\).*one pruner per stage"),
        ([2], [SCOPE, FASTV], [9], ConfigError, r"2 pruners for pruning before 1 layers \(2\)"),
        ([0, 2], [FASTV, SCOPE], [9, 4], LayerError, "TopK reads attention of the layer before layer 0"),
    ],
)
def test_what_does_not_fit_is_refused_before_any_forward(
    layers: list[int], pruners: list[Any], tokens: list[int], error: type[Exception], message: str
) -> None:
    made = method(layers, stages(*pruners), tokens)
    with pytest.raises(error, match=message), tp.apply(CASES["llava"].build(), made):
        pytest.fail("the block was entered")


def test_an_estimate_is_refused_as_well() -> None:
    with pytest.raises(ConfigError, match="1 pruners for pruning before 2 layers"):
        estimate("llava-1.5-7b", method([0, 2], stages(MAX_MIN), [9, 4]), 30)


def test_an_estimate_asks_each_stage() -> None:
    both, first, second = (
        estimate("llava-1.5-7b", method([2, 9], pruner, [90, 40]), 30)["parts"]["selection"]["flops_pruned"]
        for pruner in (stages(MAX_MIN, FASTV), MAX_MIN, FASTV)
    )
    alone, last = (
        estimate("llava-1.5-7b", method([2], pruner, [90]), 30)["parts"]["selection"]["flops_pruned"]
        for pruner in (MAX_MIN, FASTV)
    )
    assert alone < both < first
    assert both - alone == second - last


@pytest.mark.parametrize(
    ("pruners", "message"),
    [
        ([], "pruner.pruners: .*at least 1"),
        ([stages(FASTV)], "stages within stages"),
        ([FASTV, "fastv"], r"pruners\[1\]: .*fastv"),
        ([FASTV, {"name": "topk"}], r"pruners\[1\].scorer"),
    ],
)
def test_wrong_configurations_name_their_place(pruners: list[Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        method([1, 2], stages(*pruners), [9, 4])


def test_an_open_budget_is_refused() -> None:
    with pytest.raises(ConfigError, match="leaves the count to the pruner"):
        tp.Method.from_dict(
            {
                "layers": {"name": "fixed", "layers": [0]},
                "pruner": stages({"name": "evs"}),
                "budget": {"name": "adaptive"},
            }
        )


def test_round_trip_and_seeds() -> None:
    made = method([1, 2], stages({"name": "topk", "scorer": {"name": "random", "seed": 3}}, FASTV), [9, 4])
    assert tp.Method.from_dict(made.model_dump(mode="json")) == made
    other = reseed(made, 5).pruner
    assert isinstance(other, Stages)
    assert other.pruners[0].scorer.seed == 5  # type: ignore[attr-defined]
    assert other.pruners[1] == made.pruner.pruners[1]  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="uses no random numbers"):
        reseed(method([1, 2], stages(FASTV, FASTV), [9, 4]), 5)
    assert made.pruner.needs == {"attention", "sample_ids"}
    assert tp.load_method("vscan").pruner.vision_layers == {5, -2}
