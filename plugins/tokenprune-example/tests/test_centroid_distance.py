"""The scorer alone, on a context made by hand: no model needed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, Literal, cast

import pytest
import torch

from tokenprune.context import PruneContext
from tokenprune_example.centroid_distance import CentroidDistance, image_means

GROUPS = torch.tensor([[0, 0, 0, 1, 1], [0, 0, 0, -1, -1]])


def context(hidden: torch.Tensor, groups: torch.Tensor) -> PruneContext:
    """The two fields that the scorer reads."""
    return cast(PruneContext, SimpleNamespace(hidden=hidden, groups=groups))


def test_means_are_those_of_each_image() -> None:
    """No image's mean holds another's tokens, or padding."""
    hidden = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0))
    means = image_means(hidden, GROUPS)
    torch.testing.assert_close(means[0, :3], hidden[0, :3].mean(0).expand(3, -1))
    torch.testing.assert_close(means[0, 3:], hidden[0, 3:].mean(0).expand(2, -1))
    torch.testing.assert_close(means[1, :3], hidden[1, :3].mean(0).expand(3, -1))


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_odd_token_scores_highest(metric: Literal["euclidean", "cosine"], dtype: torch.dtype) -> None:
    """The one token that differs from a uniform image wins."""
    hidden = torch.ones(1, 6, 8, dtype=dtype)
    hidden[0, 4] = torch.tensor([1.0, -1.0]).repeat(4)
    scores = CentroidDistance(metric=metric).score(context(hidden, torch.zeros(1, 6, dtype=torch.long)))
    assert scores.shape == (1, 6)
    assert scores.argmax() == 4


def test_padding_does_not_matter() -> None:
    """A sample scores as it does alone."""
    hidden = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(1))
    scores = CentroidDistance().score(context(hidden, GROUPS))
    alone = CentroidDistance().score(context(hidden[1:, :3], GROUPS[1:, :3]))
    torch.testing.assert_close(scores[1:, :3], alone)


def test_unknown_fields_are_refused() -> None:
    """Misspelt configuration is an error that names the key."""
    wrong: dict[str, Any] = {"metrik": "cosine"}
    with pytest.raises(ValueError, match="metrik"):
        CentroidDistance(**wrong)
