"""FastV's token score: attention from the last prompt token."""

from typing import Annotated, Literal

import torch
from pydantic import PositiveInt
from torch import Tensor

from tokenprune.core.tunable import Tunable
from tokenprune.flops.decoder import Shape
from tokenprune.scorers.base import Scorer
from tokenprune.signals.context import PruneContext


class FastV(Scorer):
    """Attention that each visual token receives from the last prompt token, mean over heads.

    Only the attention row of that one query is computed, from query and key states. This works under every attention
    implementation, runs no layer twice and materialises no attention map.

    Source: "An Image is Worth 1/2 Tokens After Layer 2", arXiv 2403.06764 (``previous``). PyramidDrop and VScan rank
    tokens ``entering`` a layer.

    Attributes:
        at: ``previous`` reads the attention of layer K-1, as it ran. ``entering`` computes that of layer K on the
            states that enter it: the layer's own norm, keys of all rows, the query of the last row, and its rotary
            embedding.
        queries: Number of prompt tokens, counted from the last one, whose attention is averaged. FastV reads one;
            FrameFusion's published code reads four on Qwen2-VL. A shorter prompt has fewer.
    """

    at: Annotated[Literal["previous", "entering"], Tunable("previous", "entering")] = "previous"
    queries: Annotated[PositiveInt, Tunable(1, 4)] = 1

    @property
    def needs(self) -> frozenset[str]:
        """The attention of layer K-1, or of layer K."""
        return frozenset({"attention" if self.at == "previous" else "entering"})

    def score(self, ctx: PruneContext) -> Tensor:
        """See :meth:`tokenprune.scorers.base.Scorer.score`."""
        probe = ctx.probe if self.at == "previous" else ctx.entering_probe
        order = torch.arange(ctx.row_mask.shape[1], device=ctx.row_mask.device)
        last = torch.where(ctx.row_mask, order, -1).topk(min(self.queries, len(order)), dim=1).values
        exists = last >= 0
        # a prompt with fewer tokens repeats its last one, because the attention row of padding is empty
        rows = probe.rows(torch.where(exists, last, ctx.last_row[:, None])).mean(1)
        row = (rows * exists[:, :, None]).sum(1) / exists.sum(1, keepdim=True)
        return row.gather(1, ctx.visual_rows)

    def flops(self, shape: Shape, visual: int, tokens: int) -> int:
        """The query rows against all keys; entering, also the keys' projection."""
        rows = 2 * self.queries * tokens * shape.heads * shape.head_dim
        keys = 2 * tokens * shape.width * shape.kv_heads * shape.head_dim
        return rows if self.at == "previous" else rows + keys
