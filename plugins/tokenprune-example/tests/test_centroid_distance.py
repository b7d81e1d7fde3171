"""The scorer alone, on contexts made from plain tensors: no model is needed."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch

from tokenprune.core.tunable import tunable_fields, variants
from tokenprune.signals.context import PruneContext
from tokenprune.testing import make_context
from tokenprune_example.centroid_distance import CentroidDistance, image_means

GROUPS = torch.tensor([[0, 0, 0, 1, 1], [0, 0, 0, -1, -1]])


def context(hidden: torch.Tensor, groups: torch.Tensor) -> PruneContext:
    """A context whose rows are all visual tokens, or padding where the group is -1."""
    return make_context(hidden, groups >= 0, images=groups.clamp(min=0))


def test_means_are_those_of_each_image() -> None:
    """The mean of an image contains neither the tokens of other images nor padding."""
    hidden = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0))
    means = image_means(hidden, GROUPS)
    torch.testing.assert_close(means[0, :3], hidden[0, :3].mean(0).expand(3, -1))
    torch.testing.assert_close(means[0, 3:], hidden[0, 3:].mean(0).expand(2, -1))
    torch.testing.assert_close(means[1, :3], hidden[1, :3].mean(0).expand(3, -1))


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_odd_token_scores_highest(metric: Literal["euclidean", "cosine"], dtype: torch.dtype) -> None:
    """In a uniform image, the one token that differs has the highest score."""
    hidden = torch.ones(1, 6, 8, dtype=dtype)
    hidden[0, 4] = torch.tensor([1.0, -1.0]).repeat(4)
    scores = CentroidDistance(metric=metric).score(context(hidden, torch.zeros(1, 6, dtype=torch.long)))
    assert scores.shape == (1, 6)
    assert scores.argmax() == 4


def test_padding_does_not_matter() -> None:
    """The scores of a padded sample are those that it has alone."""
    hidden = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(1))
    scores = CentroidDistance().score(context(hidden, GROUPS))
    alone = CentroidDistance().score(context(hidden[1:, :3], GROUPS[1:, :3]))
    torch.testing.assert_close(scores[1:, :3], alone)


def test_unknown_fields_are_refused() -> None:
    """A misspelt field is an error that names the key."""
    wrong: dict[str, Any] = {"metrik": "cosine"}
    with pytest.raises(ValueError, match="metrik"):
        CentroidDistance(**wrong)


def test_the_metric_may_be_tuned() -> None:
    """`tokenprune tune` tries both metrics."""
    assert tunable_fields(CentroidDistance(), None) == {"metric": ("euclidean", "cosine")}
    assert variants(CentroidDistance()) == [CentroidDistance(), CentroidDistance(metric="cosine")]
