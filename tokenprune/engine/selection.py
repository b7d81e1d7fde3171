"""What a pruner selected: checked against the quotas, counted, and applied to rows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tokenprune.context import PruneContext
from tokenprune.errors import ScoreError
from tokenprune.pruners.base import Pruner, Selection


def check_selection(selection: Selection, context: PruneContext, quotas: Tensor, pruner: Pruner) -> None:
    """Refuse a selection of the wrong shape; a wrong count is found when the forward is done.

    Args:
        selection: What the pruner returned.
        context: What it saw.
        quotas: Tokens to keep per sample and image, long ``[batch, images]``.
        pruner: The pruner.

    Raises:
        ScoreError: ``keep`` is not bool ``[batch, n_visual]``.
    """
    name = type(pruner).__name__
    if selection.keep.shape != context.visual_mask.shape or selection.keep.dtype != torch.bool:
        raise ScoreError(
            f"pruner {name} returned keep of {tuple(selection.keep.shape)} {selection.keep.dtype}",
            f"return bool {tuple(context.visual_mask.shape)}",
        )
    kept = _kept_per_image(selection, context, quotas.shape[1])
    if pruner.across_images:
        kept_all, wanted = kept.sum(1), quotas.sum(1)
        missed = kept_all < wanted if context.open_ended else kept_all != wanted
        wrong = missed | (kept < quotas.clamp(max=1)).any(1)
    else:
        wrong = ((kept < quotas) if context.open_ended else (kept != quotas)).any(1)
    layer = context.layer  # alone: the flags live until the forward ends, and the context is large
    context.check(
        wrong,
        lambda _: ScoreError(
            f"pruner {name} kept {kept.tolist()} tokens per image at layer {layer}",
            f"keep {quotas.tolist()}",
        ),
    )


def count_kept(selection: Selection, context: PruneContext, sizes: Sequence[Sequence[int]]) -> list[list[int]]:
    """How many tokens of each image were kept by a pruner that decides by itself: one transfer.

    Args:
        selection: What the pruner returned.
        context: What it saw.
        sizes: Visual tokens per sample and image before the stage.
    """
    kept = _kept_per_image(selection, context, max(map(len, sizes))).tolist()
    return [row[: len(images)] for row, images in zip(kept, sizes, strict=True)]


def _kept_per_image(selection: Selection, context: PruneContext, images: int) -> Tensor:
    """Long ``[batch, images]``."""
    number = torch.arange(images, device=context.groups.device)
    kept = (selection.keep & context.visual_mask)[:, :, None]
    return ((context.groups[:, :, None] == number) & kept).sum(1)


def rows_of(width: int, index: Tensor, chosen: Tensor) -> Tensor:
    """Bool ``[batch, width]`` that is True at ``index`` where ``chosen``; repeated indices are joined by "or"."""
    counts = torch.zeros(index.shape[0], width, dtype=torch.int32, device=index.device)
    return counts.scatter_add_(1, index, chosen.int()) > 0


def replace_rows(hidden: Tensor, target: Tensor, states: Tensor) -> Tensor:
    """``hidden`` ``[batch, rows, dim]`` with ``states`` at the rows ``target`` (-1: nowhere)."""
    batch, width, dim = hidden.shape
    padded = torch.cat([hidden, hidden.new_zeros(batch, 1, dim)], dim=1)
    index = target.masked_fill(target < 0, width)[:, :, None].expand(-1, -1, dim)
    return padded.scatter(1, index, states)[:, :width]
