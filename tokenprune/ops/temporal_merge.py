"""FlashVID's merging of tokens along the frames of a segment, into trees."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize, pad

from tokenprune.ops.segments import sum_by_segment
from tokenprune.ops.topk import rank_within

_NONE = -1.0  # the cosine of a token that can merge into none


@dataclass(frozen=True)
class Trees:
    """Tokens that merged into tokens of the frame before, frame by frame.

    Attributes:
        states: What each token became, float32 ``[batch, frames, n, dim]``; of use at tokens that did not merge.
        merged: Tokens that merged into another one, bool ``[batch, frames, n]``.
        root: The token that each one ended in, as ``frame * n + place``, long ``[batch, frames, n]``; its own for a
            token that did not merge.
    """

    states: Tensor
    merged: Tensor
    root: Tensor


def temporal_merge(
    states: Tensor, valid: Tensor, free: Tensor, segments: Tensor, fewest: Tensor, threshold: float
) -> Trees:
    """Merge tokens into the most similar token of the frame before, in the same segment, anywhere in the frame.

    A token merges if its cosine to that token is above the threshold. If fewer tokens of a segment than ``fewest``
    would be left, a higher threshold takes its place: the m-th largest cosine of the segment, where m tokens more than
    ``fewest`` are in it. Ties: of equally similar tokens the earlier one is merged into.

    The tokens that merge into one token, into those, and so on are its tree. A token that does not merge becomes the
    sum of its tree, divided by one more than the number of tokens that merged directly into it. So the published code
    computes it: where a tree is no deeper than one frame, that is the mean. No host-device synchronisation.

    Args:
        states: Floating ``[batch, frames, n, dim]``.
        valid: Entries that are tokens and not padding, bool ``[batch, frames, n]``.
        free: Tokens that may merge, and be merged into, bool ``[batch, frames, n]``; all of them valid.
        segments: Segment of each frame, long ``[batch, frames]``.
        fewest: Tokens that are to be left, long ``[batch, frames]``; its sum over a segment counts.
        threshold: Cosine above which tokens merge.
    """
    batch, frames, n = valid.shape
    sums = states.float().clone()
    unit = normalize(sums, dim=-1)
    cosine = unit[:, 1:] @ unit[:, :-1].transpose(-1, -2)
    together = segments[:, 1:] == segments[:, :-1]
    pairs = free[:, 1:, :, None] & free[:, :-1, None, :] & together[:, :, None, None]
    cosine = cosine.masked_fill(~pairs, _NONE)
    best, anchor = pad(cosine.amax(-1), (0, 0, 1, 0), value=_NONE), pad(cosine.argmax(-1), (0, 0, 1, 0))
    merged = _limited(best, valid, segments, fewest, threshold)

    counts = torch.ones_like(best)
    place = torch.arange(n, device=anchor.device)
    root = torch.arange(frames * n, device=anchor.device).view(1, frames, n).repeat(batch, 1, 1)
    for frame in range(frames - 1, 0, -1):
        child = (anchor[:, frame, None, :] == place[:, None]) & merged[:, frame, None, :]
        sums[:, frame - 1] += child.float() @ sums[:, frame]
        counts[:, frame - 1] += child.sum(-1)
    for frame in range(1, frames):
        before = root[:, frame - 1].gather(1, anchor[:, frame])
        root[:, frame] = torch.where(merged[:, frame], before, root[:, frame])
    return Trees(sums / counts[..., None], merged, root)


def _limited(best: Tensor, valid: Tensor, segments: Tensor, fewest: Tensor, threshold: float) -> Tensor:
    """Tokens that merge, bool ``[batch, frames, n]``, by their largest cosine: never so many that too few are left."""
    wants = (best > threshold) & valid
    most = sum_by_segment(valid.sum(-1) - fewest, segments)
    of_token = segments[:, :, None].expand_as(best).masked_fill(~valid, -1).flatten(1)
    rank = rank_within(best.flatten(1), of_token).view_as(best)
    last = valid & (rank == most[:, :, None] - 1)
    limit = best.masked_fill(~last, -torch.inf).amax(-1)  # of the frame that has it
    limit = torch.full_like(limit, -torch.inf).scatter_reduce(1, segments, limit, "amax").gather(1, segments)
    limit = limit.masked_fill(most <= 0, torch.inf)
    too_many = sum_by_segment(wants.sum(-1), segments) > most
    return torch.where(too_many[:, :, None], best > limit[:, :, None], wants) & valid
