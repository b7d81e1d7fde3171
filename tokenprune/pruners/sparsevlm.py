"""SparseVLM's selection: rated by the text tokens that matter to the image, and the best of the dropped recycled."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenprune.context import PruneContext
from tokenprune.flops import Shape
from tokenprune.ops.raters import raters
from tokenprune.ops.recycle import cluster_count, recycle, recycled_count
from tokenprune.pruners.base import Pruner, Selection

_ROWS = 64  # attention rows per chunk: bounds the memory for a long text


class SparseVLM(Pruner):
    """Keep what the raters attend to at layer K-1, and recycle the best of the dropped tokens into clusters.

    Raters are chosen once, from the whole prompt as it enters layer 0: of the text after the sample's last visual token
    those tokens that the visual tokens point to more than to the average (:func:`tokenprune.ops.raters.raters`). A
    visual token's score is the attention that it receives from them, mean over heads and raters. Of D tokens that are
    not kept for themselves ``int(0.3 D) + 1`` with the highest scores make ``int(that / 10) + 1`` clusters by DPC-kNN
    of their hidden states; a cluster becomes one token, the mean of its members at the position of its centre. The
    budget counts clusters as tokens: of 576, 309 and 204 tokens 309, 204 and 113 survive, which are the published
    300 + 9, 200 + 4 and 110 + 3. Equal scores keep the earlier position; ties in the clustering go to the token with
    the higher score, where the published code draws lots.

    Differs from the published code: it puts clusters behind the image's other tokens and renumbers all positions
    from 0; here every token keeps its position. Images are pruned and clustered one by one, each to its own count;
    raters see all images of the sample. Where no text token is above the average (there is only one) all rate, and
    where no text follows the image the prompt's last token does. The number that survives is the budget's; the
    paper's adaptive one, from the rank of the attention map, is not in the published code either.

    Source: "SparseVLM: Visual Token Sparsification for Efficient Vision-Language Model Inference", arXiv 2410.04417.

    Attributes:
        recycle: Whether dropped tokens are recycled; without, the highest scores are kept.
    """

    recycle: bool = True

    @property
    def needs(self) -> frozenset[str]:
        """Hidden states, attention rows, and the embeddings that the raters are chosen by."""
        return frozenset({"hidden", "attention", "embeddings"})

    def select(self, ctx: PruneContext) -> Selection:
        """See :meth:`tokenprune.pruners.base.Pruner.select`."""
        scores = rated(ctx)
        ctx.check_finite(scores + ctx.hidden.abs().amax(-1).float(), type(self).__name__)
        images = ctx.per_image
        plan = []  # for every image: kept tokens, pool, clusters; host integers
        for sizes, counts in zip(images.host_sizes, images.host_quotas, strict=True):
            for size, quota in zip(sizes, counts, strict=True):
                clusters = cluster_count(size, quota) if self.recycle else 0
                pool = recycled_count(size - quota + clusters) if clusters else 0
                plan.append((quota - clusters, pool, clusters))
            plan += [(0, 0, 0)] * (images.most - len(sizes))
        kept, pools, cluster_counts = torch.tensor(plan, device=scores.device).unbind(1)
        keep, hidden = recycle(
            images.split(ctx.hidden),
            images.split(scores).masked_fill(~images.valid, -torch.inf),
            kept,
            pools,
            cluster_counts,
            max(pool for _, pool, _ in plan),
        )
        return Selection(images.join(keep), images.join(hidden) if self.recycle else None)

    def flops(self, shape: Shape, visual: int, tokens: int) -> int:
        """At most: dot products with all text, attention rows of all text, and distances of the recycled."""
        text, pool = tokens - visual, recycled_count(visual) if self.recycle else 0
        rows = 2 * text * tokens * shape.heads * shape.head_dim
        return 2 * visual * text * shape.width + rows + 2 * pool * pool * shape.width


def rated(ctx: PruneContext) -> Tensor:
    """Attention that each visual token receives from the raters, mean over heads and raters, ``[batch, n_visual]``."""
    prompt = ctx.prompt
    rows = prompt.rows.shape[1]
    most = max(1, *(rows - sum(sizes) for sizes in ctx.per_image.host_sizes))  # no sample has more text
    chosen = prompt.on_rows(raters(prompt.embeddings, prompt.visual_mask, prompt.text_mask, most))
    last = torch.zeros_like(chosen).scatter(1, ctx.last_row[:, None], True)
    chosen |= last & ~chosen.any(1, keepdim=True)
    index = (~chosen).int().argsort(dim=1, stable=True)[:, :most]
    present = chosen.gather(1, index)
    # the last token stands in for raters that a sample does not have: its row is never empty
    index = torch.where(present, index, ctx.last_row[:, None])
    total = torch.zeros(chosen.shape, device=index.device)
    for chunk, is_rater in zip(index.split(_ROWS, dim=1), present.split(_ROWS, dim=1), strict=True):
        total += (ctx.probe.rows(chunk).mean(1) * is_rater[:, :, None]).sum(1)
    return (total / present.sum(1, keepdim=True)).gather(1, ctx.visual_rows)
