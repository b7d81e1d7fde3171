"""DPC-kNN against a literal clustering in float64: centres, and merged values."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tokenprune.ops.dpc_knn import dpc_knn


def distances(states: Tensor) -> list[list[float]]:
    """Euclidean distances of all vectors, divided by the root of their length."""
    rows = states.double().tolist()
    return [[math.dist(a, b) / math.sqrt(len(rows[0])) for b in rows] for a in rows]


def literal_centres(distance: list[list[float]], clusters: int, neighbours: int) -> list[int]:
    """The centres; ties go to the earlier vector."""
    tokens = range(len(distance))
    density = [math.exp(-sum(d * d for d in sorted(distance[i])[:neighbours]) / neighbours) for i in tokens]
    score = []
    for i in tokens:
        denser = [j for j in tokens if density[j] > density[i] or (density[j] == density[i] and j < i)]
        separation = min(distance[i][j] for j in denser) if denser else max(max(row) for row in distance)
        score.append(separation * density[i])
    return sorted(sorted(tokens, key=lambda i: (-score[i], i))[:clusters])


def literal(states: Tensor, clusters: int, most: int | None = None) -> dict[int, list[float]]:
    """Centre -> mean of its cluster; ties go to the earlier vector."""
    rows, distance = states.double().tolist(), distances(states)
    tokens = range(len(rows))
    centres = literal_centres(distance, clusters, min(clusters, most or clusters))
    members: dict[int, list[int]] = {centre: [] for centre in centres}
    for i in tokens:
        members[i if i in members else min(centres, key=lambda c: (distance[i][c], c))].append(i)
    return {c: [sum(rows[i][k] for i in own) / len(own) for k in range(len(rows[0]))] for c, own in members.items()}


def check(images: list[Tensor], clusters: list[int], most: int | None = None) -> None:
    size = max(map(len, images))
    states = torch.full((len(images), size, images[0].shape[1]), 7.0)
    valid = torch.zeros(len(images), size, dtype=torch.bool)
    for row, image in enumerate(images):
        states[row, : len(image)] = image
        valid[row, : len(image)] = True
    centres, merged, _ = dpc_knn(states, valid, torch.tensor(clusters), most)
    for row, (image, count) in enumerate(zip(images, clusters, strict=True)):
        expected = literal(image, count, most) if count else {}
        assert centres[row].nonzero()[:, 0].tolist() == list(expected)
        for place in range(size):
            wanted = torch.tensor(expected.get(place, [0.0] * states.shape[2]))
            assert torch.allclose(merged[row, place], wanted.float(), atol=1e-5)


@pytest.mark.parametrize("seed", range(6))
def test_random_images_of_several_sizes(seed: int) -> None:
    noise = torch.Generator().manual_seed(seed)
    images = [torch.randn(size, 8, generator=noise) for size in (20, 7, 1, 13)]
    check(images, [3, 2, 1, 13])
    check(images, [1, 7, 0, 4])
    check(images, [9, 7, 1, 4], most=3)


@pytest.mark.parametrize("seed", range(4))
def test_planted_clusters_are_found(seed: int) -> None:
    noise = torch.Generator().manual_seed(seed)
    middles = 5 * torch.eye(4)
    states = torch.cat([middle + 0.05 * torch.randn(6, 4, generator=noise) for middle in middles])
    check([states], [4])
    centres, merged, _ = dpc_knn(states[None], torch.ones(1, 24, dtype=torch.bool), torch.tensor([4]))
    assert sorted(int(c) // 6 for c in centres[0].nonzero()[:, 0]) == [0, 1, 2, 3]
    assert torch.allclose(merged[0][centres[0]], states.view(4, 6, 4).mean(1), atol=1e-5)


@pytest.mark.parametrize("clusters", [1, 2, 5])
def test_duplicates_and_ties(clusters: int) -> None:
    check([torch.ones(6, 4)], [clusters])
    line = torch.arange(8.0)[:, None].expand(-1, 4).contiguous()  # distances are exact: all ties are
    check([line.repeat_interleave(2, 0), line], [clusters, clusters])
