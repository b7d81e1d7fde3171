"""PruneSID against a literal choice, token by token, in float64."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor

import tokenprune as tp
from tests.support.literal import cosine, exact_vectors, record
from tests.support.tower import attention, features
from tokenprune.budgets.base import Schedule
from tokenprune.ops.group_quotas import group_quotas
from tokenprune.ops.principal import principal_groups
from tokenprune.ops.suppression import suppress
from tokenprune.pruners.prunesid import PruneSID
from tokenprune.testing import TowerTensors, make_context


def literal_groups(states: list[Tensor], count: int) -> list[int]:
    """The component in which each token weighs most, by a singular value decomposition of channels by tokens."""
    columns = []
    for state in states:
        values = [1 / (1 + math.exp(-value)) for value in state.tolist()]
        mean = sum(values) / len(values)
        columns.append([value - mean for value in values])
    right = torch.linalg.svd(torch.tensor(columns, dtype=torch.float64).T, full_matrices=False).Vh[:count]
    return [max(range(count), key=lambda c: (abs(float(right[c, i])), -c)) for i in range(len(states))]


def literal_survivors(alike: list[list[float]], saliency: list[float], groups: list[int], most: float) -> list[int]:
    """The survivors, best first."""
    survivors: list[int] = []
    for i in sorted(range(len(saliency)), key=lambda i: (-saliency[i], i)):
        if groups[i] >= 0 and not any(groups[j] == groups[i] and alike[j][i] > most for j in survivors):
            survivors.append(i)
    return survivors


def literal_quotas(members: list[int], survivors: list[int], cap: int, total: int, room: int) -> list[int]:
    """One step at a time, with fractions."""
    limits = [min(cap, count) for count in survivors]
    while sum(limits) < room:
        limits = [min(limit + 1, count) for limit, count in zip(limits, members, strict=True)]
    quotas = [min(1, count) for count in members]
    spare, done, seen = total - sum(quotas), 0, 0
    for group, count in enumerate(survivors):
        seen += count
        upto = round(Fraction(seen * spare, max(1, sum(survivors))))  # halves to even
        quotas[group] = min(quotas[group] + upto - done, limits[group])
        done = upto
    for group in sorted(range(len(members)), key=lambda g: (-survivors[g], g)):
        while quotas[group] < limits[group] and sum(quotas) < total:
            quotas[group] += 1
    return quotas


def literal(states: list[Tensor], saliency: list[float], count: int, per_group: int = 4) -> list[int]:
    """Indices that are kept of one image; a token whose state is 0 is a separator."""
    patches = [i for i, state in enumerate(states) if state.abs().sum() > 0]
    own, attended = [states[i] for i in patches], [saliency[i] for i in patches]
    n, width = len(patches), len(states[0])
    if n <= count:
        separators = [i for i in range(len(states)) if i not in patches]
        return sorted([*patches, *separators[: count - n]])
    number = max(1, min(count // per_group, width - 1))
    groups = literal_groups(own, number)
    alike = [[cosine(a, b) for b in own] for a in own]
    pairs = [alike[i][j] for i in range(n) for j in range(i)]
    survivors = literal_survivors(alike, attended, groups, 18 * count / n * sum(pairs) / len(pairs))
    ranked = [*survivors, *sorted(set(range(n)) - set(survivors), key=lambda i: (-attended[i], i))]
    quotas = literal_quotas(
        [groups.count(g) for g in range(number)],
        [sum(groups[i] == g for i in survivors) for g in range(number)],
        5 * math.ceil(count / 64),
        count,
        count,
    )
    kept: list[int] = []
    for g in range(number):
        kept += [i for i in ranked if groups[i] == g][: quotas[g]]
    return sorted(patches[i] for i in kept)


def images_of(sizes: list[int], seed: int, width: int = 24) -> tuple[Tensor, Tensor]:
    """States that share a direction and topics, and attention, ``[images, n, ...]``."""
    noise = torch.Generator().manual_seed(seed)
    topics = torch.randn(6, width, generator=noise)
    topic = torch.randint(0, 6, (len(sizes), max(sizes)), generator=noise)
    own = torch.randn(len(sizes), max(sizes), width, generator=noise)
    states = 0.5 * torch.randn(width, generator=noise) + topics[topic] + 0.6 * own
    return states, torch.rand(len(sizes), max(sizes), generator=noise)


def chosen(states: Tensor, saliency: Tensor, sizes: list[int], quotas: list[int], **fields: Any) -> list[list[int]]:
    """The pruner on one image per sample, padded on the right."""
    real = torch.arange(states.shape[1]) < torch.tensor(sizes)[:, None]
    tower = {-2: TowerTensors(saliency, saliency, states, states)}
    ctx = make_context(states, real, keep=[[quota] for quota in quotas], tower=tower, layer=0)
    keep = PruneSID(**fields).select(ctx).keep
    assert not any(bool(bad.any()) for bad, _ in ctx.checks)
    return [row.nonzero()[:, 0].tolist() for row in keep]


@pytest.mark.parametrize("per_group", [2, 4, 8])
@pytest.mark.parametrize("seed", range(4))
def test_random_images(seed: int, per_group: int) -> None:
    """Three images of different sizes at once; quotas from one token to all of them."""
    sizes = [60, 25, 7]
    states, saliency = images_of(sizes, seed)
    for quotas in ([30, 12, 3], [60, 25, 7], [1, 1, 1], [13, 24, 6], [59, 4, 0]):
        expected = [
            literal(list(states[i, :size].double()), saliency[i, :size].tolist(), quota, per_group) if quota else []
            for i, (size, quota) in enumerate(zip(sizes, quotas, strict=True))
        ]
        assert [len(kept) for kept in expected] == quotas
        assert chosen(states, saliency, sizes, quotas, tokens_per_group=per_group) == expected


def test_more_than_64_tokens_raise_the_cap() -> None:
    states, saliency = images_of([200], 5, width=48)
    for quota in (64, 65, 150):
        expected = literal(list(states[0].double()), saliency[0].tolist(), quota)
        assert chosen(states, saliency, [200], [quota]) == [expected]


def test_a_companion_changes_nothing() -> None:
    """Images alone and padded beside others."""
    sizes = [50, 31, 12]
    states, saliency = images_of(sizes, 9)
    together = chosen(states, saliency, sizes, [20, 9, 5])
    for i, (size, quota) in enumerate(zip(sizes, [20, 9, 5], strict=True)):
        assert chosen(states[i : i + 1, :size], saliency[i : i + 1, :size], [size], [quota]) == [together[i]]


def test_separators_are_chosen_last() -> None:
    states, saliency = images_of([40], 3)
    separators = [7, 15, 23, 31, 39]
    states[0, separators] = 0
    saliency[0, separators] = 1  # more than any patch
    for quota in (1, 12, 35, 37, 40):
        expected = literal(list(states[0].double()), saliency[0].tolist(), quota)
        assert len(expected) == quota
        assert chosen(states, saliency, [40], [quota]) == [expected]


def test_equal_tokens_are_chosen_in_order() -> None:
    """All alike and equally attended: one group, of which the first tokens are kept."""
    assert chosen(torch.ones(1, 9, 4), torch.ones(1, 9), [9], [3]) == [[0, 1, 2]]


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_suppression(seed: int, exact: bool) -> None:
    """Duplicates have equal cosines and equal scores; group -1 is no group."""
    noise = torch.Generator().manual_seed(seed)
    states = exact_vectors(60, 9, seed).view(2, 30, 16) if exact else torch.randn(2, 30, 8, generator=noise)
    saliency = torch.randint(0, 6, (2, 30), generator=noise).float()
    groups = torch.randint(-1, 3, (2, 30), generator=noise)
    alike = [[[cosine(a, b) for b in rows.double()] for a in rows.double()] for rows in states]
    most = [0.3, 0.05]
    actual = suppress(torch.tensor(alike), saliency, groups, torch.tensor(most))
    for i in range(2):
        expected = literal_survivors(alike[i], saliency[i].tolist(), groups[i].tolist(), most[i])
        assert 0 < len(expected) < int((groups[i] >= 0).sum())
        assert actual[i].nonzero()[:, 0].tolist() == sorted(expected)


@pytest.mark.parametrize("seed", range(20))
def test_quotas_of_groups(seed: int) -> None:
    """Groups without members, survivors below and above the cap, totals from the smallest to all."""
    noise = torch.Generator().manual_seed(seed)
    members = torch.randint(0, 12, (6, 5), generator=noise)
    members[:, 0] += 1
    survivors = torch.minimum(members, torch.randint(1, 9, members.shape, generator=noise))
    fewest = members.clamp(max=1).sum(1)
    share = torch.rand(6, generator=noise)
    share[:2] = torch.tensor([0.0, 1.0])
    totals = fewest + ((members.sum(1) - fewest) * share).long()
    room = torch.minimum(totals + torch.randint(0, 2, (6,), generator=noise), members.sum(1))
    caps = torch.randint(1, 7, (6,), generator=noise)
    actual = group_quotas(members, survivors, caps, totals, room, 12)
    for i in range(6):
        expected = literal_quotas(
            members[i].tolist(), survivors[i].tolist(), int(caps[i]), int(totals[i]), int(room[i])
        )
        assert actual[i].tolist() == expected
        assert sum(expected) == totals[i]


def test_halves_round_to_even() -> None:
    """Cumulative shares 1/2, 1, 3/2, 2 become 0, 1, 2, 2."""
    ones = torch.ones(1, 4, dtype=torch.long)
    quotas = group_quotas(4 * ones, ones, torch.tensor([4]), torch.tensor([6]), torch.tensor([16]), 4)
    assert quotas.tolist() == [[1, 2, 2, 1]] == [literal_quotas([4] * 4, [1] * 4, 4, 6, 16)]


def test_components_that_an_image_lacks() -> None:
    """An image with fewer components in a batch gets the groups that it gets alone."""
    states, _ = images_of([30, 30], 1)
    valid = torch.ones(2, 30, dtype=torch.bool)
    groups = principal_groups(states, valid, torch.tensor([6, 2]), 6)
    for i, count in enumerate((6, 2)):
        assert groups[i].tolist() == literal_groups(list(states[i].double()), count)


def method(tokens: int, **fields: Any) -> dict[str, Any]:
    return {
        "layers": {"name": "fixed", "layers": [0]},
        "pruner": {"name": "prunesid", **fields},
        "budget": {"name": "keep_count", "tokens": tokens},
    }


@pytest.mark.parametrize(
    ("name", "variant"),
    [("llava", "image"), ("llava", "multi"), ("llava", "ragged"), ("vipllava", "multi"), ("llava_qwen3", "ragged")],
)
@pytest.mark.parametrize(("tokens", "per_group"), [(7, 2), (9, 4), (14, 1)])
def test_the_engine_keeps_what_the_definition_says(name: str, variant: Any, tokens: int, per_group: int) -> None:
    """Ragged batches, padded on the left, of prompts with several images of 4 x 4 tokens."""
    recording = record(name, variant, batch=3)
    saliency, states = attention(recording, name, -2), features(recording, name, -2)
    expected = []
    for sample, images in enumerate(recording.image_positions):
        kept: list[int] = []
        for number, (image, count) in enumerate(zip(images, recording.quotas(sample, tokens), strict=True)):
            own = literal(states[sample][number], saliency[sample][number], count, per_group)
            kept += [image[i] for i in own]
        expected.append(sorted(kept))
    assert recording.kept(method(tokens, tokens_per_group=per_group)) == expected


def test_states_that_are_not_finite_are_an_error() -> None:
    states, saliency = images_of([20], 0)
    states[0, 3, 1] = torch.nan
    tower = {-2: TowerTensors(saliency, saliency, states, states)}
    ctx = make_context(states, keep=5, tower=tower, layer=0)
    assert int(PruneSID().select(ctx).keep.sum()) == 5
    assert any(bool(bad.any()) for bad, _ in ctx.checks)


def test_nothing_is_read_back() -> None:
    """The meta device has no values: whatever asks for one raises."""
    states, saliency = torch.empty(2, 9, 4, device="meta"), torch.empty(2, 9, device="meta")
    tower = {-2: TowerTensors(saliency, saliency, states, states)}
    ctx = make_context(states, sizes=[[9], [9]], keep=4, tower=tower, layer=0)
    assert PruneSID().select(ctx).keep.shape == (2, 9)


def test_published_defaults() -> None:
    """64 of LLaVA-1.5's 576 tokens, before the language model."""
    made = tp.load_method("prunesid")
    assert made.pruner == PruneSID() == PruneSID(tokens_per_group=4, threshold=18, layer=-2)
    assert made.layers.layers == (0,)  # type: ignore[attr-defined]
    assert made.budget.keep(576, Schedule((0,), 32)) == (64,)
    assert 18 / 576 == 1 / 32
