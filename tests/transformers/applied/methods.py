"""What is applied in each mode."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

import tokenprune as tp
from tokenprune.pruners.base import Pruner, Selection
from tokenprune.scorers.base import Scorer
from tokenprune.signals.context import PruneContext

Mode = Literal["baseline", "nothing-dropped", "half", "unsteady"]
MODES: tuple[Mode, ...] = get_args(Mode)
LAYER = 1
"""The tiny models of the tests have two layers: one before the first dropped token, one after it."""


class KeepEverything(Pruner):
    """Decides for itself how many tokens survive: all. The engine has to go the way of a real drop."""

    adaptive = True

    @property
    def needs(self) -> frozenset[str]:
        """No signal of the model."""
        return frozenset()

    def select(self, ctx: PruneContext) -> Selection:
        """See :meth:`tokenprune.pruners.base.Pruner.select`."""
        return Selection(keep=ctx.visual_mask)


class Steady(Scorer):
    """Scores of a table, by the token's number in its sample: the same in every call.

    The tests compare two ways of one computation, so the choice must not depend on which call it is. (Those of
    ``random`` belong to the sample, and samples are numbered on through all calls of a block.)
    """

    @property
    def needs(self) -> frozenset[str]:
        """No signal of the model."""
        return frozenset()

    def score(self, ctx: PruneContext) -> Tensor:
        """See :meth:`tokenprune.scorers.base.Scorer.score`."""
        table = torch.rand(ctx.visual_mask.shape[1], generator=torch.Generator().manual_seed(7), dtype=torch.float64)
        return table.expand(ctx.visual_mask.shape).clone().to(ctx.visual_mask.device)


def method(mode: Mode) -> tp.Method | None:
    """The method of a mode; None where nothing is applied."""
    if mode == "baseline":
        return None
    layers = {"name": "fixed", "layers": [LAYER]}
    if mode == "nothing-dropped":
        return tp.Method(layers=layers, pruner=KeepEverything(), budget={"name": "adaptive"})
    scorer = Steady() if mode == "half" else {"name": "random"}
    return tp.Method(
        layers=layers, pruner={"name": "topk", "scorer": scorer}, budget={"name": "keep_ratio", "ratio": 0.5}
    )
