"""V2Drop's score against distances that are summed value by value, and the signal that it reads."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import tokenprune as tp
from tests.support.literal import exact_vectors, record
from tests.support.matrix import model_of
from tests.support.tiny import CASES
from tokenprune.engine.capture import Captures
from tokenprune.errors import LayerError
from tokenprune.ops.topk import apportion
from tokenprune.pruners.topk import TopK
from tokenprune.scorers.state_change import StateChange
from tokenprune.testing import make_context


def best(changes: list[float], count: int) -> list[int]:
    """The indices of the largest changes; ties go to the earlier one."""
    return sorted(sorted(range(len(changes)), key=lambda index: (-changes[index], index))[:count])


def distance(one: Any, other: Any) -> float:
    return sum((float(a) - float(b)) ** 2 for a, b in zip(one, other, strict=True)) ** 0.5


def method(layers: list[int], **budget: Any) -> dict[str, Any]:
    return {
        "layers": {"name": "fixed", "layers": layers},
        "pruner": {"name": "topk", "scorer": {"name": "state_change"}},
        "budget": budget,
    }


@pytest.mark.parametrize("variant", ["image", "multi", "ragged"])
@pytest.mark.parametrize("padding", ["none", "left", "right"])
@pytest.mark.parametrize(("name", "layer"), [("llava", 1), ("llava", 3), ("qwen2_5_vl", 2), ("gemma3", 1)])
def test_the_largest_distances_stay(name: str, layer: int, padding: Any, variant: Any) -> None:
    recording = record(name, variant, padding, batch=3)
    expected = []
    for sample, images in enumerate(recording.image_positions):
        kept: list[int] = []
        for image, count in zip(images, recording.quotas(sample, 7), strict=True):
            before, after = (recording.layer_inputs[number][sample] for number in (layer - 1, layer))
            kept += [image[i] for i in best([distance(before[p], after[p]) for p in image], count)]
        expected.append(sorted(kept))
    assert recording.kept(method([layer], name="keep_count", tokens=7)) == expected


@torch.no_grad()
def test_a_later_stage_reads_what_is_left() -> None:
    """Two stages at successive layers: the second compares the rows that went through the layer between them."""
    case, model = CASES["llava"], model_of("llava", "sdpa")
    batch = case.batch(model, 3, "left", seed=4, variant="ragged")
    seen: list[torch.Tensor] = []

    def entered(module: Any, args: Any, kwargs: Any) -> None:
        seen.append(args[0])

    def left(module: Any, args: Any, output: torch.Tensor) -> None:
        seen.append(output)

    how = tp.Method.from_dict(method([2, 3], name="keep_schedule", ratios=[0.6, 0.3]))
    with tp.apply(model, how) as run:
        layer = model.get_decoder().layers[2]  # these hooks are behind those of the engine
        hooks = [layer.register_forward_pre_hook(entered, with_kwargs=True), layer.register_forward_hook(left)]
        model(**batch.inputs)
        for hook in hooks:
            hook.remove()
    first, second = run.stages
    before, after = seen
    assert first.rows is not None
    assert before.shape == after.shape
    for sample, sizes in enumerate(batch.groups):
        row_of = {position: row for row, position in enumerate(first.rows[sample].tolist())}
        images = (batch.inputs["input_ids"][sample] == 150).nonzero()[:, 0].split(sizes)
        survivors = [[p for p in image.tolist() if p in first.kept[sample].tolist()] for image in images]
        expected: list[int] = []
        for image, count in zip(survivors, apportion(second.after[sample], list(map(len, survivors))), strict=True):
            rows = [row_of[position] for position in image]
            changes = [distance(before[sample, row], after[sample, row]) for row in rows]
            expected += [image[index] for index in best(changes, count)]
        assert [p for p in second.kept[sample].tolist() if p >= 0] == expected


@torch.no_grad()
def test_nothing_is_kept_for_a_method_that_does_not_read_it(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    original = Captures._keep_hidden

    def counted(self: Captures, stage: Any) -> Any:
        asked.append(stage.layer)
        return original(self, stage)

    monkeypatch.setattr(Captures, "_keep_hidden", counted)
    model = model_of("llava", "sdpa")
    inputs = CASES["llava"].batch(model, 2).inputs
    for scorer, layers in (("fastv", []), ("state_change", [2])):
        data = method([2], name="keep_count", tokens=5)
        data["pruner"]["scorer"] = {"name": scorer}
        with tp.apply(model, tp.Method.from_dict(data)):
            model(**inputs)
        assert asked == layers


def test_layer_0_has_no_layer_before_it() -> None:
    how = tp.Method.from_dict(method([0], name="keep_count", tokens=5))
    with (
        pytest.raises(LayerError, match="reads previous of the layer before layer 0"),
        tp.apply(model_of("llava", "sdpa"), how),
    ):
        pass


@pytest.mark.parametrize("seed", range(4))
def test_ties_keep_the_earlier_position(seed: int) -> None:
    """Distances of vectors of +-1 have few values, exactly."""
    before, after = exact_vectors(40, 5, seed), exact_vectors(40, 6, seed + 10)
    changes = [distance(*pair) for pair in zip(before, after, strict=True)]
    for count in (1, 7, 39, 40):
        ctx = make_context(after[None], previous=before[None], keep=count, needs={"hidden", "previous"})
        assert TopK(scorer=StateChange()).select(ctx).keep[0].nonzero()[:, 0].tolist() == best(changes, count)


def test_half_precision_is_measured_in_float32() -> None:
    """The difference of two large numbers that half precision can hold, whose square it cannot."""
    before, after = torch.zeros(1, 2, 4).half(), torch.tensor([[[300.0] * 4, [301.0] * 4]]).half()
    ctx = make_context(after, previous=before)
    assert StateChange().checked(ctx).tolist() == [[600.0, 602.0]]


def test_published_counts() -> None:
    """Of 576 tokens 288, 144 and one: 202.8 on average over 32 layers, which the authors call 192."""
    made = tp.load_method("v2drop", model="LLaVA-1.5-7B")
    assert made.pruner == tp.load_method("v2drop").pruner == TopK(scorer=StateChange())
    assert made.layers.layers == (3, 17, 22)  # type: ignore[attr-defined]
    assert made.budget.tokens == (288, 144, 1)  # type: ignore[attr-defined]
    assert (3 * 576 + 14 * 288 + 5 * 144 + 10 * 1) / 32 == 202.8125
