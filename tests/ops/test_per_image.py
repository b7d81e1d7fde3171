"""The layout image by image: ``join`` inverts ``split``."""

from __future__ import annotations

import torch

from tokenprune.ops.per_image import PerImage
from tokenprune.ops.topk import floor_share


def test_split_and_join() -> None:
    groups = torch.tensor([[0, 0, 1, 1, 1, -1], [0, 0, 0, 0, 0, 0], [-1] * 6])
    images = PerImage(groups, [[2, 3], [6], []], [[1, 2], [3], []])
    assert (images.max_size, images.max_quota) == (6, 3)
    assert images.sizes.tolist() == [2, 3, 6, 0, 0, 0]
    assert images.quotas.tolist() == [1, 2, 3, 0, 0, 0]
    values = torch.arange(18.0).view(3, 6)
    split = images.split(values)
    assert split.shape == (6, 6)
    assert [row[valid].tolist() for row, valid in zip(split, images.valid, strict=True)] == [
        [0, 1],
        [2, 3, 4],
        [6, 7, 8, 9, 10, 11],
        [],
        [],
        [],
    ]
    assert images.join(split).tolist() == [[0, 1, 2, 3, 4, 0], [6, 7, 8, 9, 10, 11], [0] * 6]
    wide = torch.randn(3, 6, 4)
    assert torch.equal(images.join(images.split(wide)), wide * (groups >= 0)[:, :, None])
    assert images.join(images.valid).tolist() == (groups >= 0).tolist()


def test_images_need_not_lie_together() -> None:
    groups = torch.tensor([[1, 0, 1, 0]])
    images = PerImage(groups, [[2, 2]], [[1, 1]])
    assert images.split(torch.tensor([[10, 20, 30, 40]])).tolist() == [[20, 40], [10, 30]]
    assert images.join(images.split(torch.tensor([[10, 20, 30, 40]]))).tolist() == [[10, 20, 30, 40]]


def test_one_image_per_sample_is_not_copied() -> None:
    values = torch.randn(2, 3, 4)
    images = PerImage(torch.zeros(2, 3, dtype=torch.long), [[3], [3]], [[1], [2]])
    assert images.split(values) is values
    assert images.join(values) is values
    padded = PerImage(torch.tensor([[0, 0, 0], [0, 0, -1]]), [[3], [2]], [[1], [2]])
    assert padded.split(values)[1, 2].tolist() == values[1, 0].tolist()
    assert padded.join(values)[1, 2].tolist() == [0.0] * 4


def test_host_counts() -> None:
    images = PerImage(torch.tensor([[0, 0, 1], [0, 0, -1]]), [[2, 1], [2]], [[1, 1], [2]])
    assert images.host_counts == [(2, 1), (1, 1), (2, 2), (0, 0)]
    assert images.host_counts == list(zip(images.sizes.tolist(), images.quotas.tolist(), strict=True))


def test_counts_follow_from_quotas() -> None:
    """Of images that a sample lacks, the quota is 0."""
    images = PerImage(torch.tensor([[0, 0, 1], [0, 0, -1]]), [[2, 1], [2]], [[1, 1], [2]])
    counts, most = images.counts(lambda quota: 3 * quota + 1)
    assert counts.tolist() == [4, 4, 7, 1]
    assert most == 7


def test_shares_are_rounded_down_and_errors_of_floating_point_do_not_count() -> None:
    assert 100 * 0.29 < 29, "nothing is rounded wrongly: the test shows nothing"
    assert [floor_share(100, share) for share in (0.29, 0.295, 0.299, 0.0, 1.0)] == [29, 29, 29, 0, 100]
