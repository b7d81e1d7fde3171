"""SparseVLM's selection: tokens with attention from relevant text tokens; the best dropped tokens are recycled."""

from typing import Annotated

import torch
from torch import Tensor

from tokenprune.core.tunable import Tunable
from tokenprune.flops.decoder import Shape
from tokenprune.ops.raters import raters
from tokenprune.ops.recycle import cluster_count, recycle, recycled_count
from tokenprune.pruners.base import Pruner, Selection
from tokenprune.signals.context import PruneContext


class SparseVLM(Pruner):
    """Keep the tokens that relevant text tokens attend to at layer K-1; recycle the best dropped tokens as clusters.

    The relevant text tokens ("raters") are chosen once, from the whole prompt as it enters layer 0: of the text after
    the sample's last visual token, those with above-average similarity to the visual tokens
    (:func:`tokenprune.ops.raters.raters`). The score of a visual token is the attention that it receives from them,
    mean over heads and raters. The tokens with the highest scores are kept as they are. Of the D others, the ``R =
    int(0.3 D) + 1`` with the highest scores are recycled: DPC-kNN of their hidden states makes ``int(R / 10) + 1``
    clusters, and each cluster becomes one token, the mean of its members at the position of its centre. The budget
    counts clusters as tokens: of 576, 309 and 204 tokens, 309, 204 and 113 survive, which are the published 300 + 9,
    200 + 4 and 110 + 3. Equal scores keep the earlier position. Ties in the clustering go to the token with the higher
    score; the published code breaks them at random.

    Differs from the published code: that code puts clusters after the image's other tokens and renumbers all positions
    from 0; here every token keeps its position. Images are pruned and clustered one by one, each to its own count;
    raters are chosen for all images of the sample together. If no text token is above the average (there is only one),
    all of them are raters; if no text follows the image, the last token of the prompt is the rater. The budget decides
    how many tokens survive. The paper's adaptive number, from the rank of the attention map, is not in the published
    code either.

    Source: "SparseVLM: Visual Token Sparsification for Efficient Vision-Language Model Inference", arXiv 2410.04417.

    Attributes:
        recycle: Whether dropped tokens are recycled. If false, the tokens with the highest scores are kept.
    """

    recycle: Annotated[bool, Tunable(True, False)] = True

    @property
    def needs(self) -> frozenset[str]:
        """Hidden states, attention rows, and the prompt's embeddings, by which raters are chosen."""
        return frozenset({"hidden", "attention", "embeddings"})

    def select(self, ctx: PruneContext) -> Selection:
        """See :meth:`tokenprune.pruners.base.Pruner.select`."""
        scores = attention_from_raters(ctx)
        ctx.check_finite(scores + ctx.hidden.abs().amax(-1).float(), type(self).__name__)
        images = ctx.per_image
        plan = []  # for every image: kept tokens, recycled tokens, clusters; host integers
        for sizes, counts in zip(images.host_sizes, images.host_quotas, strict=True):
            for size, quota in zip(sizes, counts, strict=True):
                clusters = cluster_count(size, quota) if self.recycle else 0
                pool = recycled_count(size - quota + clusters) if clusters else 0
                plan.append((quota - clusters, pool, clusters))
            plan += [(0, 0, 0)] * (images.most - len(sizes))
        kept, pools, cluster_counts = torch.tensor(plan, device=scores.device).unbind(1)
        keep, hidden, joined = recycle(
            images.split(ctx.hidden),
            images.split(scores).masked_fill(~images.valid, -torch.inf),
            kept,
            pools,
            cluster_counts,
            max(pool for _, pool, _ in plan),
        )
        if not self.recycle:
            return Selection(images.join(keep), scores=scores)
        return Selection(images.join(keep), images.join(hidden), scores, images.join_places(joined))

    def flops(self, shape: Shape, visual: int, tokens: int) -> int:
        """An upper bound: dot products with all text, attention rows of all text, distances of recycled tokens."""
        text, pool = tokens - visual, recycled_count(visual) if self.recycle else 0
        rows = 2 * text * tokens * shape.heads * shape.head_dim
        return 2 * visual * text * shape.width + rows + 2 * pool * pool * shape.width


def attention_from_raters(ctx: PruneContext) -> Tensor:
    """Attention that each visual token receives from the raters, mean over heads and raters, ``[batch, n_visual]``."""
    prompt = ctx.prompt
    rows = prompt.rows.shape[1]
    max_text = max(1, *(rows - sum(sizes) for sizes in ctx.per_image.host_sizes))  # no sample has more text
    is_rater = prompt.on_rows(raters(prompt.embeddings, prompt.visual_mask, prompt.text_mask, max_text))
    is_last = torch.zeros_like(is_rater).scatter(1, ctx.last_row[:, None], True)
    is_rater |= is_last & ~is_rater.any(1, keepdim=True)
    return ctx.probe.mean_of(is_rater, max_text, ctx.last_row).gather(1, ctx.visual_rows)
