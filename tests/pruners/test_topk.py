"""The best tokens of every image by a scorer."""

from __future__ import annotations

import torch

from tokenprune.pruners.topk import TopK
from tokenprune.scorers.norm import Norm
from tokenprune.testing import make_context


def test_every_image_keeps_its_quota_and_ties_the_earlier_token() -> None:
    """Two images and one; padding has the largest norm of all."""
    norms = torch.tensor([[1.0, 3.0, 3.0, 9.0, 8.0], [2.0, 2.0, 2.0, 50.0, 50.0]])
    ctx = make_context(
        norms[:, :, None],
        torch.tensor([[True] * 5, [True, True, True, False, False]]),
        images=torch.tensor([[0, 0, 0, 1, 1], [0] * 5]),
        keep=[[1, 1], [2]],
    )
    keep = TopK(scorer=Norm(source="hidden")).select(ctx).keep
    assert keep.int().tolist() == [[0, 1, 0, 1, 0], [1, 1, 0, 0, 0]]


def test_it_reads_what_its_scorer_reads() -> None:
    pruner = TopK(scorer=Norm(source="key"))
    assert pruner.needs == pruner.scorer.needs
    assert TopK(scorer={"name": "vision_attention", "layer": -3}).vision_layers == {-3}
