"""Checks the selections of pruners against the quotas, counts them, and applies them to rows."""

import torch
from torch import Tensor

from tokenprune.core import plugins
from tokenprune.core.component_errors import blamed
from tokenprune.errors import ScoreError
from tokenprune.pruners.base import Pruner, Selection
from tokenprune.signals.context import PruneContext


def select(pruner: Pruner, context: PruneContext) -> Selection:
    """Let a pruner select, and check what it returns.

    Args:
        pruner: The pruner.
        context: The stage.

    Raises:
        ScoreError: The pruner raised an exception, or returned something else than a selection of the right shape.
    """
    with blamed("pruners", pruner, "select", context.layer):
        selection = pruner.select(context)
    keep = getattr(selection, "keep", None)
    if not isinstance(keep, Tensor):
        described = plugins.registry("pruners").describe(type(pruner))
        got = type(selection).__name__ if keep is None else f"keep of {type(keep).__name__}"
        raise ScoreError(f"{described} returned {got} at layer {context.layer}", "return Selection(keep=<bool tensor>)")
    check_selection(selection, context, pruner)
    return selection


def check_selection(selection: Selection, context: PruneContext, pruner: Pruner) -> None:
    """Refuse a selection of the wrong shape; wrong counts and targets are found when the forward is done.

    Args:
        selection: The pruner's selection.
        context: The stage.
        pruner: The pruner.

    Raises:
        ScoreError: ``keep`` is not bool ``[batch, n_visual]``, or scores or merge targets have another shape.
    """
    name = type(pruner).__name__
    if selection.keep.shape != context.visual_mask.shape or selection.keep.dtype != torch.bool:
        raise ScoreError(
            f"pruner {name} returned keep of {tuple(selection.keep.shape)} {selection.keep.dtype}",
            f"return bool {tuple(context.visual_mask.shape)}",
        )
    _check_shown(selection, context, name)
    quotas, kept = context.quotas, _kept_per_image(selection, context)
    if pruner.shares_quota_itself:
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


def _check_shown(selection: Selection, context: PruneContext, name: str) -> None:
    """Refuse scores and merge targets (drawn in pictures) that do not belong to these tokens."""
    shape = context.visual_mask.shape
    for field, values, kind in (("scores", selection.scores, "floating"), ("merged", selection.merged, "long")):
        if values is None:
            continue
        right = values.is_floating_point() if kind == "floating" else values.dtype == torch.long
        if values.shape != shape or not right:
            raise ScoreError(
                f"pruner {name} returned {field} of {tuple(values.shape)} {values.dtype}",
                f"return {kind} {tuple(shape)}, or None",
            )
    if selection.merged is not None:
        merges = (selection.merged >= 0) & context.visual_mask
        target = selection.merged.clamp(0, shape[1] - 1)
        kept = selection.keep & context.visual_mask
        wrong = merges & (kept | ~kept.gather(1, target) | (selection.merged >= shape[1]))
        layer = context.layer
        context.check(
            wrong.any(1),
            lambda sample: ScoreError(
                f"pruner {name} merged a token of sample {sample} into one that is not kept, or merged a kept token"
                f" (layer {layer})",
                "return the index of a kept token for each dropped token that was merged, else -1",
            ),
        )


def count_kept(selection: Selection, context: PruneContext) -> list[list[int]]:
    """Count the kept tokens of each image, of a pruner that decides by itself: one transfer.

    Args:
        selection: The pruner's selection.
        context: The stage.
    """
    kept = _kept_per_image(selection, context).tolist()
    return [row[: len(images)] for row, images in zip(kept, context.per_image.host_sizes, strict=True)]


def _kept_per_image(selection: Selection, context: PruneContext) -> Tensor:
    """Long ``[batch, images]``."""
    number = torch.arange(context.per_image.most, device=context.groups.device)
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
