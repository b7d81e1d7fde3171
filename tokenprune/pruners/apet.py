"""ApET's selection: tokens that a few others cannot rebuild, with these few and all dropped tokens merged in."""

from typing import Annotated, Literal

import torch
from pydantic import Field, PositiveInt

from tokenprune.core.tunable import Tunable, TunableLayer
from tokenprune.flops.decoder import Shape
from tokenprune.ops.gather import rows_at
from tokenprune.ops.merging import merge_into, replace_at
from tokenprune.ops.rebuild import farthest_points, overwrite, random_shares, rebuild_errors
from tokenprune.ops.topk import topk_by_group
from tokenprune.pruners.base import Pruner, Selection
from tokenprune.signals.context import Per, PruneContext
from tokenprune.signals.signal_reader import TowerLayerNumber


class Apet(Pruner):
    """Keep the tokens with the largest error of rebuilding, put the basis into the least of them, and merge the others.

    The basis of an image is ``basis`` tokens by farthest-point sampling from a random start (Euclidean distance). The
    error of a token is its distance to the best linear combination of the basis, of least squares with 1e-5 on the
    diagonal. Kept are the tokens with the largest errors. Basis tokens are rebuilt almost exactly, so they are dropped;
    their *states* take the places of as many kept tokens with the smallest errors (``order``). Every dropped token is
    merged into the kept token that is most similar to it by cosine, but into none with a basis state: a kept token
    becomes the mean of itself and of all those merged into it. An image that keeps all its tokens is unchanged. Ties
    keep the earlier position.

    Before the language model the published code does all this with the tower's features (``compare: tower``), and the
    projector maps what comes out; inside it with hidden states (``compare: hidden``). Where the projector does not get
    the tower's features token by token, and at a stage behind layer 0, errors and cosines are those of the features,
    and the states that enter the stage are merged. Row separators are no patches: their error is 0, and they are
    merged into nothing.

    Differs from the published code: its start is random anew in every run; here it is drawn from the seed and the
    sample. Distances are float32 here, and the equations float64; there the distances are half precision. A quota that
    leaves no token beside the basis fails there; here one token at least keeps its own state, and the first basis
    tokens are used. Of equally similar tokens, the earlier position is merged into, there the one with the larger
    error. Several images have quotas of their own, in proportion to their tokens. On LLaVA-NeXT, the code's stage in
    the language model sees only the first tokens of the image.

    Source: "ApET: Approximation-Error Guided Token Compression for Efficient VLMs", arXiv 2602.19870.

    Attributes:
        basis: Number of tokens to rebuild from.
        compare: What is rebuilt: the states that leave ``layer`` of the vision ``tower``, or the ``hidden`` states that
            enter the stage.
        layer: Layer of the vision tower, negative from the end; read with ``compare: tower`` only.
        order: How basis tokens, in the order in which they were sampled, are put into the kept tokens: these by
            ``position`` (the published code before the language model), or by falling ``error`` (inside it).
        blend: Share of the basis state where it is put in, the rest is the token's own state: 1 for LLaVA, 0.5 in the
            published code for Qwen2.5-VL.
        per: ``tile`` chooses in each tile of an image (LLaVA-NeXT), or frame of a video, by itself, as in the published
            code; ``image`` chooses in the whole image. With ``compare: hidden`` always the image.
        seed: Seed of the start. The start depends on it and on the sample, not on the batch that contains the sample.
    """

    basis: Annotated[PositiveInt, Tunable(5, 10, 20)] = 10
    compare: Literal["tower", "hidden"] = "tower"
    layer: Annotated[TowerLayerNumber, TunableLayer(2 / 3, 1.0)] = -2
    order: Literal["position", "error"] = "position"
    blend: float = Field(default=1.0, ge=0, le=1)
    per: Per = "tile"
    seed: int = 0

    @property
    def needs(self) -> frozenset[str]:
        """Hidden states, and the numbers of the samples, which seed the start."""
        return frozenset({"hidden", "sample_ids"})

    @property
    def vision_layers(self) -> frozenset[int]:
        """The layer whose states are rebuilt, if they are the tower's."""
        return frozenset({self.layer} if self.compare == "tower" else ())

    def select(self, ctx: PruneContext) -> Selection:
        """See :meth:`tokenprune.pruners.base.Pruner.select`."""
        in_tower = self.compare == "tower"
        tower = ctx.vision(self.layer) if in_tower else None
        features = ctx.hidden if tower is None else tower.features
        project = tower.projector if tower is not None and ctx.layer == 0 else None
        ctx.check_finite(ctx.hidden.abs().amax(-1).float() + features.abs().amax(-1), type(self).__name__)
        images = ctx.regions(self.per, self.layer) if in_tower else ctx.per_image
        compared, entering = images.split(features), images.split(ctx.hidden)
        patches = images.valid & (compared != 0).any(-1)
        shares = random_shares(images.host_sizes, ctx.sample_ids, self.seed, images.most).to(compared.device)
        points, exists = farthest_points(compared, patches, shares, self.basis)
        errors = rebuild_errors(compared, points, exists)

        own_counts, most_own = images.counts(lambda quota: max(quota - self.basis, min(quota, 1)))
        one_group = torch.where(images.valid, 0, -1)
        keep = topk_by_group(errors, one_group, images.quotas[:, None])
        own = topk_by_group(errors, one_group, own_counts[:, None])
        loses = images.valid & (images.quotas < images.sizes)[:, None]

        states = (entering if project is None else compared).float()
        rank = errors if self.order == "error" else torch.zeros_like(errors)
        states = overwrite(states, keep & ~own & loses, rank, rows_at(states, points), exists, self.blend)
        states, joined = merge_into(states, compared, own, patches & ~keep, most_own, own_in_mean=True)
        if project is not None:
            states = replace_at(
                entering,
                keep & patches & loses,
                images.max_quota,
                states,
                lambda rows: project(rows.to(ctx.hidden.dtype)),
            )
        return Selection(images.join(keep), images.join(states), images.join(errors), images.join_places(joined))

    def flops(self, shape: Shape, visual: int, tokens: int) -> int:
        """Distances, coefficients, rebuilding, and at most the cosines for merging if half are kept."""
        return visual * self.basis * (3 + 2 + 2) * shape.width + 2 * visual**2 // 4 * shape.width
