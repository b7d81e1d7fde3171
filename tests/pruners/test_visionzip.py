"""VisionZip against a literal choice and merging, token by token, in float64."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor

import tokenprune as tp
from tests.support.literal import Recording, cosine, exact_vectors, record
from tests.support.tiny import CASES
from tests.support.tower import attention, features
from tokenprune.budgets.base import Schedule
from tokenprune.ops.merging import every_nth, merge_into
from tokenprune.pruners.visionzip import VisionZip
from tokenprune.testing import TowerTensors, make_context

Kept = dict[int, list[float]]


def plus_mean(own: list[float], others: list[list[float]]) -> list[float]:
    """A vector plus the mean of others, entry by entry; the vector itself if there are none."""
    return [value + sum(row[i] for row in others) / len(others) if others else value for i, value in enumerate(own)]


def literal(
    saliency: list[float], keys: list[Tensor], states: list[list[float]], count: int, share: Fraction
) -> tuple[list[int], Kept]:
    """Dominant tokens; and contextual ones, with what they become."""
    contextual = int(count * share)
    dominant = sorted(range(len(saliency)), key=lambda i: (-saliency[i], i))[: count - contextual]
    rest = [i for i in range(len(saliency)) if i not in dominant]
    stride = max(1, len(rest) // contextual) if contextual else 1
    targets = rest[::stride][:contextual]
    groups: dict[int, list[int]] = {target: [] for target in targets}
    for token in rest if targets else []:
        if token not in targets:
            groups[max(targets, key=lambda t: (cosine(keys[token], keys[t]), -t))].append(token)
    return dominant, {i: plus_mean(states[i], [states[j] for j in group]) for i, group in groups.items()}


def tower_keys(recording: Recording, name: str, layer: int) -> list[list[list[Tensor]]]:
    """Keys of each token's patch, mean over heads, by sample and image, in float64."""
    model: Any = CASES[name].build("eager")
    tower = model.model.vision_tower
    module = getattr(tower, "vision_model", tower).encoder.layers[layer].self_attn
    outputs: list[Tensor] = []
    hook = module.k_proj.register_forward_hook(lambda module, args, output: outputs.append(output.double()))
    with torch.no_grad():
        model.model.vision_tower(recording.inputs["pixel_values"])
    hook.remove()
    means = iter(outputs[0].unflatten(-1, (-1, module.head_dim)).mean(2)[:, 1:])
    return [[list(next(means)) for _ in images] for images in recording.image_positions]


def pruned_states(recording: Recording, method: dict[str, Any]) -> tuple[list[list[int]], list[list[Tensor]]]:
    """Positions that go into the pruned layers, and the states there, per sample."""
    entered: list[Tensor] = []
    made = tp.Method.from_dict(method)
    layer = recording.model.get_decoder().layers[0]
    with torch.no_grad(), tp.apply(recording.model, made) as run:
        hook = layer.register_forward_pre_hook(
            lambda module, args, kwargs: entered.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
        )
        recording.model(**recording.inputs)
        hook.remove()
    rows = run.stages[0].rows
    assert rows is not None
    return rows.tolist(), [list(sample.double()) for sample in entered[0]]


def method(tokens: int, **fields: Any) -> dict[str, Any]:
    return {
        "layers": {"name": "fixed", "layers": [0]},
        "pruner": {"name": "visionzip", **fields},
        "budget": {"name": "keep_count", "tokens": tokens},
    }


@pytest.mark.parametrize(
    ("name", "variant"),
    [("llava", "image"), ("llava", "multi"), ("llava", "ragged"), ("vipllava", "multi"), ("llava_qwen3", "ragged")],
)
@pytest.mark.parametrize(("tokens", "share"), [(14, 10 / 64), (9, 0.5), (24, 0.9)])
def test_the_engine_keeps_and_merges_what_the_definition_says(
    name: str, variant: Any, tokens: int, share: float
) -> None:
    """Ragged batches, padded on the left, of prompts with several images of 16 tokens.

    Features are merged before the projector; in VipLLaVA, whose projector gets several layers, projected ones are.
    """
    recording = record(name, variant, batch=3)
    tokens = 13 if (variant, tokens) == ("image", 24) else tokens
    weights, keys = attention(recording, name, -2), tower_keys(recording, name, -2)
    tower, before = features(recording, name, -2), name != "vipllava"
    projector = recording.model.model.multi_modal_projector
    rows, entered = pruned_states(recording, method(tokens, contextual=share))
    kept = recording.kept(method(tokens, contextual=share))
    for sample, images in enumerate(recording.image_positions):
        expected: Kept = {}
        for number, (image, count) in enumerate(zip(images, recording.quotas(sample, tokens), strict=True)):
            entering = [recording.layer_inputs[0][sample, position].tolist() for position in image]
            states = [row.tolist() for row in tower[sample][number]] if before else entering
            own, keyed = weights[sample][number], keys[sample][number]
            dominant, contextual = literal(own, keyed, states, count, Fraction(str(share)))
            expected |= {image[i]: entering[i] for i in dominant}
            for i, vector in contextual.items():
                with torch.no_grad():
                    expected[image[i]] = projector(torch.tensor(vector)).tolist() if before else vector
        assert kept[sample] == sorted(expected)
        for position, state in zip(rows[sample], entered[sample], strict=True):
            if position in recording.text_positions[sample]:
                expected[position] = recording.layer_inputs[0][sample, position].tolist()
            if position in expected:
                assert state.tolist() == pytest.approx(expected.pop(position), abs=1e-5)
        assert set(expected) <= set(recording.text_positions[sample]), "a kept token is not among the rows"


def literal_merge(keys: Tensor, states: Tensor, targets: list[int], others: list[int], equal: bool) -> Tensor:
    """States after merging: equal weights for all, or the target plus the mean of the others."""
    merged = states.double()
    groups: dict[int, list[int]] = {target: [] for target in targets}
    for token in others if targets else []:
        groups[max(targets, key=lambda t: (cosine(keys[token], keys[t]), -t))].append(token)
    for target, group in groups.items():
        own, rows = states[target].tolist(), states[group].tolist()
        means = [sum(column) / len(column) for column in zip(own, *rows, strict=True)]
        merged[target] = torch.tensor(means if equal else plus_mean(own, rows))
    return merged


@pytest.mark.parametrize("equal", [False, True])
@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_merging(seed: int, exact: bool, equal: bool) -> None:
    """Problems of different sizes; exact vectors are duplicates of each other and equally like several targets."""
    noise = torch.Generator().manual_seed(seed)
    sizes, counts = [30, 12, 5, 1], [4, 12, 0, 1]
    keys = exact_vectors(4 * 30, 5, seed).view(4, 30, 16) if exact else torch.randn(4, 30, 8, generator=noise)
    states = torch.randn(4, 30, 6, generator=noise)
    valid = torch.arange(30) < torch.tensor(sizes)[:, None]
    order = torch.rand(4, 30, generator=noise).masked_fill(~valid, 2.0).argsort(1)
    targets = torch.zeros_like(valid).scatter(1, order, torch.arange(30) < torch.tensor(counts)[:, None])
    others = valid & ~targets & (torch.rand(4, 30, generator=noise) < 0.8)
    merged, _ = merge_into(states, keys, targets, others, max(counts), own_in_mean=equal)
    for row in range(4):
        marked = [mask[row].nonzero()[:, 0].tolist() for mask in (targets, others)]
        assert torch.allclose(merged[row].double(), literal_merge(keys[row], states[row], *marked, equal), atol=1e-5)


def test_no_targets_at_all() -> None:
    states, none = torch.randn(2, 3, 4), torch.zeros(2, 3, dtype=torch.bool)
    assert torch.equal(merge_into(states, states, none, ~none, 0, own_in_mean=False)[0], states)


def test_equally_like_targets_the_earlier_one() -> None:
    keys = torch.tensor([[[1.0, 0], [0, 1], [2, 0], [1, 1]]])
    targets = torch.tensor([[True, True, True, False]])
    merged, _ = merge_into(torch.eye(4)[None], keys, targets, ~targets, 3, own_in_mean=False)
    assert merged[0, 0].tolist() == [1, 0, 0, 1]
    assert torch.equal(merged[0, 1:], torch.eye(4)[1:])


def test_contextual_tokens_by_hand() -> None:
    """Two of six tokens are dominant; of the others, the first and third are contextual, with one token each.

    The numbers are written down, not computed: a target gains the mean of what is merged into it, undivided itself.
    """
    attention = torch.tensor([[0.1, 0.9, 0.2, 0.3, 0.8, 0.4]])
    keys = torch.tensor([[[1.0, 0], [0, 0], [0.9, 0.1], [0, 1], [0, 0], [0.2, 0.7]]])
    hidden = torch.tensor([[[1.0, 2], [3, 4], [5, 6], [7, 8], [9, 10], [11, 12]]])
    tower = {-2: TowerTensors(attention=attention, received=attention, key=keys, features=keys)}
    selection = VisionZip(contextual=0.5).select(make_context(hidden, keep=4, tower=tower))
    assert selection.hidden is not None
    assert selection.keep.tolist() == [[True, True, False, True, True, False]]
    assert selection.hidden[selection.keep].tolist() == [[6, 8], [3, 4], [18, 20], [9, 10]]


def test_a_contextual_token_gains_the_mean_of_many() -> None:
    """Three tokens go to the same target: it becomes its own 1 plus their mean 5, not the mean 4 of all."""
    hidden = torch.tensor([[[1.0], [2.0], [4.0], [9.0], [100.0]]])
    attention = torch.tensor([[0.1, 0.1, 0.1, 0.1, 0.9]])
    tower = {-2: TowerTensors(attention=attention, received=attention, key=torch.ones(1, 5, 2), features=hidden)}
    selection = VisionZip(contextual=0.5).select(make_context(hidden, keep=2, tower=tower))
    assert selection.hidden is not None
    assert selection.hidden[selection.keep].tolist() == [[6.0], [100.0]]


def test_the_projector_maps_the_sum() -> None:
    """Squares tell before from behind: (1 + mean(2, 4))^2 is 16, and 1^2 + mean(2^2, 4^2) is 11."""
    features = torch.tensor([[[1.0], [2.0], [4.0], [9.0]]])
    attention, key = torch.tensor([[0.1, 0.2, 0.3, 0.9]]), torch.ones(1, 4, 1)
    for layer, expected in ((0, 16), (1, 11)):
        tower = {-2: TowerTensors(attention, attention, key, features, projector=torch.square)}
        ctx = make_context(features.square(), keep=2, tower=tower, layer=layer)
        selection = VisionZip(contextual=0.5).select(ctx)
        assert selection.hidden is not None
        assert selection.hidden[selection.keep].tolist() == [[expected], [81]]


@pytest.mark.parametrize("project", [None, torch.square])
def test_separators_are_merged_into_nothing(project: Any) -> None:
    """Token 1 has no features: the mean is that of the patches, 4 and not 2, or 16 and not 11.5."""
    features = torch.tensor([[[1.0], [0.0], [4.0], [9.0]]])
    attention, key = torch.tensor([[0.1, 0.0, 0.3, 0.9]]), torch.ones(1, 4, 1)
    tower = {-2: TowerTensors(attention, attention, key, features, projector=project)}
    hidden = torch.tensor([[[1.0], [7.0], [16.0], [81.0]]])
    selection = VisionZip(contextual=0.5).select(make_context(hidden, keep=2, tower=tower, layer=0))
    assert selection.hidden is not None
    assert selection.hidden[selection.keep].tolist() == [[25] if project else [17], [81]]


def test_a_separator_that_is_contextual_stays_what_it_was() -> None:
    features = torch.tensor([[[0.0], [2.0], [9.0]]])
    attention, key = torch.tensor([[0.0, 0.1, 0.9]]), torch.ones(1, 3, 1)
    tower = {-2: TowerTensors(attention, attention, key, features, projector=torch.square)}
    hidden = torch.tensor([[[7.0], [4.0], [81.0]]])
    selection = VisionZip(contextual=0.5).select(make_context(hidden, keep=2, tower=tower, layer=0))
    assert selection.hidden is not None
    assert selection.hidden[selection.keep].tolist() == [[7], [81]]


def test_every_nth() -> None:
    tokens = torch.tensor([[True] * 9 + [False], [False, True] * 5, [True] * 10, [False] * 10])
    for counts in ([2, 5, 10, 0], [4, 2, 3, 0], [9, 1, 0, 0], [1, 3, 7, 0]):
        actual = every_nth(tokens, torch.tensor(counts))
        for row, count in enumerate(counts):
            indices = tokens[row].nonzero()[:, 0].tolist()
            expected = indices[:: max(1, len(indices) // count)][:count] if count else []
            assert actual[row].nonzero()[:, 0].tolist() == expected
            assert len(expected) == count


def test_nothing_waits_for_the_device() -> None:
    """The meta device has no values: whatever asks for one raises."""
    states, tokens = torch.empty(2, 9, 4, device="meta"), torch.empty(2, 9, dtype=torch.bool, device="meta")
    targets = every_nth(tokens, torch.empty(2, dtype=torch.long, device="meta"))
    assert merge_into(states, states, targets, tokens & ~targets, 3, own_in_mean=False)[0].shape == (2, 9, 4)


@pytest.mark.parametrize(("count", "contextual"), [(192, 30), (128, 20), (64, 10)])
def test_published_splits(count: int, contextual: int) -> None:
    """162 + 30, 108 + 20, 54 + 10 of LLaVA-1.5's 576 tokens."""
    share = VisionZip().contextual
    assert int(count * share + 1e-9) == contextual
    zero = [[0.0]] * 576
    kept, targets = literal([1.0] * 576, [torch.zeros(1)] * 576, zero, count, Fraction(share))
    dominant = count - contextual
    assert kept == list(range(dominant))
    assert list(targets) == list(range(dominant, 576, (576 - dominant) // contextual))[:contextual]


def test_published_defaults() -> None:
    """64 of LLaVA-1.5's 576 tokens, before the language model."""
    made = tp.load_method("visionzip")
    assert made.pruner == VisionZip() == VisionZip(contextual=10 / 64, layer=-2)
    assert made.layers.layers == (0,)  # type: ignore[attr-defined]
    assert made.budget.keep(576, Schedule((0,), 32)) == (64,)
