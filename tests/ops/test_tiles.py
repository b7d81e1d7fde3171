"""Tiles: which tokens belong to which, and how a quota is divided between them."""

from __future__ import annotations

import pytest
import torch

from tokenprune.ops.per_image import PerImage
from tokenprune.ops.tiles import divide, per_tile


@pytest.mark.parametrize(
    ("total", "weights", "capacity", "expected"),
    [
        (320, [576] * 5, [576] * 5, [64] * 5),  # LLaVA-NeXT: equal tiles, equal quotas
        (7, [4, 4, 4], [4, 4, 4], [3, 2, 2]),  # the remainder goes to the first
        (10, [1, 3, 6], [1, 3, 6], [1, 3, 6]),
        (5, [1, 9], [1, 9], [1, 4]),  # 0.5 and 4.5: the earlier of equal fractions
        (2, [5, 5, 5], [5, 5, 5], [1, 1, 0]),  # fewer tokens than tiles
        (0, [5, 5], [5, 5], [0, 0]),
        (12, [4, 4], [5, 7], [5, 7]),  # separators fill what patches cannot
        (10, [4, 4], [5, 7], [5, 5]),
        (1, [0], [1], [1]),
    ],
)
def test_a_quota_is_divided_in_proportion(
    total: int, weights: list[int], capacity: list[int], expected: list[int]
) -> None:
    assert divide(total, weights, capacity) == expected


@pytest.mark.parametrize("seed", range(20))
def test_quotas_add_up_and_fit(seed: int) -> None:
    noise = torch.Generator().manual_seed(seed)
    weights = torch.randint(0, 9, (5,), generator=noise).tolist()
    capacity = [weight + int(torch.randint(0, 3, (1,), generator=noise)) for weight in weights]
    for total in range(sum(capacity) + 1):
        quotas = divide(total, weights, capacity)
        assert sum(quotas) == total
        assert all(0 <= quota <= room for quota, room in zip(quotas, capacity, strict=True))
        if total <= sum(weights) and sum(weights):
            exact = [total * weight / sum(weights) for weight in weights]
            assert all(abs(quota - share) < 1 for quota, share in zip(quotas, exact, strict=True))


def test_tiles_take_the_place_of_images() -> None:
    """Two samples, the first with two images: an overview and two tiles whose rows alternate, then a plain image."""
    first = torch.tensor([0, 0, 1, 2, -1, 1, 2, -1, 3, 3])  # a separator ends each row of the tiles
    second = torch.tensor([4, 4, 4])
    groups = torch.tensor([[0] * 8 + [1] * 2, [0] * 3 + [-1] * 7])
    images = PerImage(groups, [[8, 2], [3]], [[4, 1], [2]])
    made = per_tile(images, [first, second])
    assert made.groups.tolist() == [[0, 0, 1, 2, 2, 1, 2, 2, 3, 3], [0, 0, 0, *[-1] * 7]]
    assert made.host_sizes == [[2, 2, 4, 2], [3]]
    # 4 of 6 patches in three tiles of two: the separators do not count
    assert made.host_quotas == [[2, 1, 1, 1], [2]]
    assert [sum(quotas) for quotas in made.host_quotas] == [5, 2]


def test_an_image_that_begins_with_a_separator() -> None:
    images = PerImage(torch.zeros(1, 3, dtype=torch.long), [[3]], [[2]])
    made = per_tile(images, [torch.tensor([-1, 0, 1])])
    assert made.groups.tolist() == [[0, 0, 1]]
    assert made.host_quotas == [[1, 1]]
