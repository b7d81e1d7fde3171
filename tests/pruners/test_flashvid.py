"""FlashVID against literal segments, choices, trees and clusters, token by token, in float64."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

import tokenprune as tp
from tests.engine.test_transfers import counted
from tests.ops.test_dpc_knn import distances, literal_centres
from tests.pruners.test_visionzip import pruned_states
from tests.support.literal import cosine, record
from tests.support.tower import attention
from tests.support.video import VIDEOS, Place, places_of
from tokenprune.budgets.base import Schedule
from tokenprune.errors import UnsupportedFeatureError
from tokenprune.ops.segments import segment_frames
from tokenprune.ops.temporal_merge import temporal_merge
from tokenprune.pruners.flashvid import FlashVID
from tokenprune.pruners.stages import Stages
from tokenprune.testing import TowerTensors, make_context

Frames = list[list[Tensor]]
"""States by frame and place, float64."""


def mean(rows: list[Tensor]) -> Tensor:
    return torch.stack(rows).mean(0)


def literal_segments(frames: Frames, threshold: float, fewest: int) -> list[int]:
    means = [mean(frame) for frame in frames]
    alike = [cosine(a, b) for a, b in pairwise(means)]
    cuts = {f for f, value in enumerate(alike) if value < threshold}
    for f in sorted(range(len(alike)), key=lambda f: (alike[f], f)):
        if len(cuts) + 1 < fewest:
            cuts.add(f)
    return [sum(cut < f for cut in cuts) for f in range(len(frames))]


def literal_diverse(states: list[Tensor], weights: list[float], count: int) -> list[int]:
    """Weighted greedy max-min; ties go to the earlier token."""
    kept: list[int] = []
    while len(kept) < count:
        best, where = -math.inf, -1
        for i in range(len(states)):
            if i in kept:
                continue
            others = kept or [j for j in range(len(states)) if j != i]
            nearest = min((weights[i] * (1 - cosine(states[i], states[j])) for j in others), default=math.inf)
            if nearest > best + 1e-12:
                best, where = nearest, i
        kept.append(where)
    return kept


def literal_trees(
    frames: Frames, free: list[list[int]], segments: list[int], fewest: list[int], threshold: float
) -> tuple[dict[tuple[int, int], Tensor], dict[tuple[int, int], tuple[int, int]]]:
    """State of each free token that stays; parent of each that merges."""
    best: dict[tuple[int, int], tuple[float, int]] = {}
    for f in range(1, len(frames)):
        if segments[f] == segments[f - 1] and free[f - 1]:
            for i in free[f]:
                best[f, i] = max(((cosine(frames[f][i], frames[f - 1][j]), j) for j in free[f - 1]), key=lambda p: p[0])
    parents = {}
    for segment in set(segments):
        own = [f for f in range(len(frames)) if segments[f] == segment]
        most = sum(len(frames[f]) - fewest[f] for f in own)
        merging = {t: p for t, p in best.items() if t[0] in own and p[0] > threshold}
        if len(merging) > most:
            values = sorted((p[0] for t, p in best.items() if t[0] in own), reverse=True)
            merging = {t: p for t, p in merging.items() if most > 0 and p[0] > values[most - 1]}
        parents |= {t: (t[0] - 1, p[1]) for t, p in merging.items()}
    children: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for child, parent in parents.items():
        children.setdefault(parent, []).append(child)

    def total(token: tuple[int, int]) -> Tensor:
        return frames[token[0]][token[1]] + sum((total(child) for child in children.get(token, [])), torch.zeros(1))

    stay = [(f, i) for f in range(len(frames)) for i in free[f] if (f, i) not in parents]
    return {t: total(t) / (1 + len(children.get(t, []))) for t in stay}, parents


def shares(total: int, weights: list[int]) -> list[int]:
    """Rounded down; the remainder to the largest fractions, ties to the earlier."""
    exact = [Fraction(total * weight, max(1, sum(weights))) for weight in weights]
    result = [math.floor(value) for value in exact]
    for i in sorted(range(len(weights)), key=lambda i: (-(exact[i] - result[i]), i))[: total - sum(result)]:
        result[i] += 1
    return result


def literal(
    frames: Frames, weights: list[list[float]], quotas: list[int], exact: bool, pruner: FlashVID
) -> tuple[dict[tuple[int, int], Tensor], dict[tuple[int, int], tuple[int, int]]]:
    """State of each kept token, by frame and place; and the kept token that each merged one ended in."""
    segments = literal_segments(frames, pruner.segment_threshold, pruner.min_segments)
    kept: dict[tuple[int, int], Tensor] = {}
    free, wanted = [], []
    for f, states in enumerate(frames):
        own = weights[f]
        if pruner.relevance:
            middle = mean([mean(other) for g, other in enumerate(frames) if segments[g] == segments[f]])
            own = [weight * float(state @ middle) for weight, state in zip(own, states, strict=True)]
        count = math.ceil(quotas[f] * Fraction(str(pruner.diverse)))
        chosen = literal_diverse(states, own, count)
        kept |= {(f, i): states[i] for i in chosen}
        free.append([i for i in range(len(states)) if i not in chosen])
        wanted.append(quotas[f] - count)
    trees, parents = literal_trees(frames, free, segments, quotas, pruner.threshold)
    ended: dict[tuple[int, int], tuple[int, int]] = {}
    for segment in sorted(set(segments)):
        numbers = [f for f in range(len(frames)) if segments[f] == segment]
        left = [[i for i in free[f] if (f, i) in trees] for f in numbers]
        total = sum(wanted[f] for f in numbers)
        clusters = shares(total, [len(own) for own in left])
        if not exact:
            clusters = [math.ceil(Fraction(total * len(own), max(1, sum(map(len, left))))) for own in left]
        for f, own, count in zip(numbers, left, clusters, strict=True):
            if not count:
                continue
            states = [trees[f, i] for i in own]
            apart = distances(torch.stack(states))
            centres = literal_centres(apart, count, min(count, 7))
            members: dict[int, list[int]] = {centre: [] for centre in centres}
            for i in range(len(own)):
                members[i if i in members else min(centres, key=lambda c: (apart[i][c], c))].append(i)
            for centre, group in members.items():
                kept[f, own[centre]] = mean([states[i] for i in group])
                ended |= {(f, own[i]): (f, own[centre]) for i in group}
    for child in sorted(parents):  # parents are in earlier frames
        if parents[child] in ended:
            ended[child] = ended[parents[child]]
    return kept, {token: target for token, target in ended.items() if token not in kept}


def video(scenes: list[int], tokens: int, seed: int, width: int = 12) -> tuple[Tensor, Tensor]:
    """States of scenes whose tokens move and change, and attention, both frame by frame."""
    noise = torch.Generator().manual_seed(seed)
    shared, frames = torch.randn(width, generator=noise), []
    for length in scenes:
        picture = torch.randn(tokens, width, generator=noise)
        for _ in range(length):
            picture = picture.roll(1, 0)
            strength = torch.where(torch.rand(tokens, 1, generator=noise) < 0.5, 2.0, 0.2)
            frames.append(shared + picture + strength * torch.randn(tokens, width, generator=noise))
    return torch.stack(frames), torch.rand(len(frames), tokens, generator=noise)


def checked(
    videos: list[tuple[Tensor, Tensor]], keep: list[int] | None, pruner: FlashVID
) -> list[dict[tuple[int, int], Tensor]]:
    """Samples of one video each, padded on the right, against the literal; what is kept of each."""
    counts = [states.shape[0] * states.shape[1] for states, _ in videos]
    width, dim = max(counts), videos[0][0].shape[-1]
    hidden, saliency = torch.full((len(videos), width, dim), 3.0), torch.full((len(videos), width), 9.0)
    grid = torch.full((len(videos), width, 3), -1)
    for sample, (states, weights) in enumerate(videos):
        frames, tokens = weights.shape
        hidden[sample, : counts[sample]] = states.flatten(0, 1)
        saliency[sample, : counts[sample]] = weights.flatten()
        axes = torch.arange(frames), torch.zeros(1).long(), torch.arange(tokens)
        grid[sample, : counts[sample]] = torch.cartesian_prod(*axes)
    real = torch.arange(width) < torch.tensor(counts)[:, None]
    tower = {-1: TowerTensors(saliency, saliency, hidden, hidden)}
    ctx = make_context(
        hidden,
        real,
        keep=[[1 if keep is None else keep[sample]] for sample in range(len(videos))],
        grid=grid,
        tower=tower,
        layer=0,
        open_ended=keep is None,
    )
    selection = pruner.select(ctx)
    assert not any(bool(bad.any()) for bad, _ in ctx.checks)
    assert selection.hidden is not None
    assert selection.merged is not None
    result = []
    for sample, (states, weights) in enumerate(videos):
        frames, tokens = weights.shape
        own = [list(frame.double()) for frame in states]
        quotas = [math.ceil(Fraction(str(pruner.share)) * tokens)] * frames
        if keep is not None:
            quotas = shares(keep[sample], [tokens] * frames)
        kept, ended = literal(own, weights.double().tolist(), quotas, keep is not None, pruner)
        assert [divmod(i, tokens) for i in selection.keep[sample].nonzero()[:, 0].tolist()] == sorted(kept)
        for (frame, place), state in kept.items():
            actual = selection.hidden[sample, frame * tokens + place].double()
            torch.testing.assert_close(actual, state, atol=1e-5, rtol=1e-5)
        for i, target in enumerate(selection.merged[sample, : counts[sample]].tolist()):
            assert (None if target < 0 else divmod(target, tokens)) == ended.get(divmod(i, tokens))
        assert keep is None or len(kept) == keep[sample]
        result.append(kept)
    return result


@pytest.mark.parametrize("relevance", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_videos_where_the_pruner_decides(seed: int, relevance: bool) -> None:
    """Videos of several lengths and sizes of frames at once."""
    videos = [video([3, 2], 9, seed), video([1], 6, seed + 20), video([4], 12, seed + 40)]
    for share, least in ((0.3125, 2), (0.6, 1), (0.125, 8), (1.0, 2)):
        checked(videos, None, FlashVID(share=share, relevance=relevance, min_segments=least))


@pytest.mark.parametrize("least", [1, 3, 8])
@pytest.mark.parametrize("seed", range(3))
def test_videos_under_a_budget(seed: int, least: int) -> None:
    """One token, fewer tokens than frames, and all of them."""
    videos = [video([3, 2], 9, seed), video([2], 6, seed + 20), video([4], 12, seed + 40)]
    for keep in ([1, 1, 1], [3, 2, 4], [14, 5, 20], [33, 11, 47], [45, 12, 48]):
        checked(videos, keep, FlashVID(min_segments=least, diverse=0.5))


@pytest.mark.parametrize(("threshold", "diverse"), [(-1.0, 0.2), (0.5, 0.2), (0.95, 0.7), (0.8, 1.0)])
def test_other_settings(threshold: float, diverse: float) -> None:
    """With a low threshold, more tokens would merge than may."""
    videos = [video([5], 10, 7), video([3, 3], 8, 8)]
    checked(videos, None, FlashVID(threshold=threshold, diverse=diverse, min_segments=1, segment_threshold=0.5))
    checked(videos, [21, 30], FlashVID(threshold=threshold, diverse=diverse, min_segments=1, segment_threshold=0.5))


def test_a_companion_changes_nothing() -> None:
    videos = [video([3, 2], 9, 1), video([2], 6, 2), video([4], 12, 3)]
    together = checked(videos, [15, 4, 11], FlashVID())
    for own, keep, kept in zip(videos, [15, 4, 11], together, strict=True):
        assert sorted(checked([own], [keep], FlashVID())[0]) == sorted(kept)


def test_equal_frames() -> None:
    """Ties everywhere: every frame is the same, and so are its tokens."""
    same = (torch.ones(4, 5, 3), torch.ones(4, 5))
    for keep in (1, 4, 9, 20):
        checked([same], [keep], FlashVID(min_segments=2))


@pytest.mark.parametrize("fewest", [1, 2, 4, 9])
@pytest.mark.parametrize("threshold", [-1.0, 0.9, 2.0])
def test_segments(threshold: float, fewest: int) -> None:
    """Samples of seven frames, of three, and of one."""
    videos = [video([3, 4], 6, 0)[0], video([2, 1], 6, 1)[0], video([1], 6, 2)[0]]
    means, exists = torch.zeros(3, 7, 12), torch.zeros(3, 7, dtype=torch.bool)
    for sample, states in enumerate(videos):
        means[sample, : len(states)], exists[sample, : len(states)] = states.mean(1), True
    actual = segment_frames(means, exists, threshold, fewest)
    for sample, states in enumerate(videos):
        expected = literal_segments([list(frame.double()) for frame in states], threshold, fewest)
        assert actual[sample, : len(states)].tolist() == expected


def test_a_tree_by_hand() -> None:
    """One cell, three frames: 4 merges into 2, and both into 1: their sum is divided by one more than its one child."""
    states = torch.tensor([1.0, 2.0, 4.0]).view(1, 3, 1, 1)
    all_of_them = torch.ones(1, 3, 1, dtype=torch.bool)
    segments, fewest = torch.zeros(1, 3, dtype=torch.long), torch.zeros(1, 3, dtype=torch.long)
    trees = temporal_merge(states, all_of_them, all_of_them, segments, fewest, 0.8)
    assert trees.merged.flatten().tolist() == [False, True, True]
    assert trees.root.flatten().tolist() == [0, 0, 0]
    assert float(trees.states[0, 0, 0, 0]) == (1 + 2 + 4) / 2
    apart = temporal_merge(states, all_of_them, all_of_them, torch.tensor([[0, 1, 1]]), fewest, 0.8)
    assert apart.merged.flatten().tolist() == [False, False, True]
    assert apart.states.flatten().tolist()[:2] == [1, 3]


def method(budget: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {
        "layers": {"name": "fixed", "layers": [0]},
        "pruner": {"name": "flashvid", **fields},
        "budget": budget,
    }


@pytest.mark.parametrize("count", [None, 7, 20])
def test_images_are_frames(count: int | None) -> None:
    """Ragged batches, padded on the left: two or three images of 4 x 4 tokens, by the class token's attention."""
    recording = record("llava", "multi", batch=3)
    weights = attention(recording, "llava", -1)
    pruner = FlashVID(min_segments=2, segment_threshold=0.0, threshold=0.1, diverse=0.5)
    budget = {"name": "adaptive"} if count is None else {"name": "keep_count", "tokens": count}
    fields = {"min_segments": 2, "segment_threshold": 0.0, "threshold": 0.1, "diverse": 0.5}
    positions, rows = pruned_states(recording, method(budget, **fields))
    for sample, images in enumerate(recording.image_positions):
        frames = [[recording.layer_inputs[0][sample, position] for position in image] for image in images]
        quotas = [5] * len(images) if count is None else recording.quotas(sample, count)
        kept, _ = literal(frames, weights[sample], quotas, count is not None, pruner)
        expected = {images[frame][place]: state for (frame, place), state in kept.items()}
        where = [position for image in images for position in image]
        entered = {p: state for p, state in zip(positions[sample], rows[sample], strict=True) if p in where}
        assert sorted(entered) == sorted(expected)
        for position, state in expected.items():
            torch.testing.assert_close(entered[position], state, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", list(VIDEOS))
@pytest.mark.parametrize("tokens", [1, 5, 9])
def test_separators_stay_while_frames_have_a_token(name: str, tokens: int) -> None:
    """Every family of videos: exact counts; tokens without a place are kept where there is room."""
    recording = record(name, "video")
    places: list[Place | None] = places_of(name, recording)
    kept = recording.kept(method({"name": "keep_count", "tokens": tokens}))
    frames = len({place[0] for place in places if place is not None})
    for sample, images in enumerate(recording.image_positions):
        where = [position for image in images for position in image]
        separators = [position for position, place in zip(where, places, strict=True) if place is None]
        assert len(kept[sample]) == tokens
        expected = separators[: min(max(tokens - frames, 0), len(separators))]
        assert [position for position in kept[sample] if position in separators] == expected


def test_frames_behind_an_earlier_stage_are_refused() -> None:
    recording = record("llava", "multi")
    made = method({"name": "keep_schedule", "tokens": [20, 10]}) | {"layers": {"name": "fixed", "layers": [0, 1]}}
    with pytest.raises(UnsupportedFeatureError, match="frames are known before any token is dropped"):
        recording.kept(made)


def test_frames_are_counted_with_one_transfer() -> None:
    """The pruner and its operations read nothing; the prompt brings the numbers of the frames to the host."""
    made = tp.Method.from_dict(method({"name": "keep_count", "tokens": 9}))
    counts = counted("qwen2_5_vl", "video", made)
    assert not [name for name in counts if name.startswith(("pruners", "scorers"))]
    assert counts["engine/prompt.py"] == 2
    assert counts["ops/frames.py"] > 0  # of numbers that are on the host


def test_published_defaults() -> None:
    """25 % on average: 31.25 % up to layer 20 of 28, and three tenths of that from there on."""
    made = tp.load_method("flashvid")
    assert isinstance(made.pruner, Stages)
    assert made.pruner.pruners[0] == FlashVID()
    layers = {"LLaVA-OneVision-7B": (20, 28), "Qwen2.5-VL-7B": (20, 28), "Qwen3-VL-8B": (28, 36)}
    for name, (stage, depth) in layers.items():
        named = tp.load_method("flashvid", model=name)
        assert named.layers.layers == (0, stage)  # type: ignore[attr-defined]
        first, second = named.budget.keep(10_000, Schedule((0, stage), depth))
        assert (stage * first + (depth - stage) * second) / depth == pytest.approx(1000, abs=1)
