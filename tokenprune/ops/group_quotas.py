"""PruneSID's division of an image's quota between its groups of tokens."""

import torch
from torch import Tensor


def group_quotas(members: Tensor, survivors: Tensor, caps: Tensor, totals: Tensor, room: Tensor, most: int) -> Tensor:
    """Divide the quotas of many images between the groups of each.

    A group may keep at most its survivors, at most the image's cap. Where these limits leave too little room, all of an
    image rise by one, up to the members of each group, until their sum is ``room``. Every group with members gets one
    token. The rest is divided in proportion to the survivors: the cumulative sums of the shares are rounded (halves to
    even), and shares above a limit are cut to it. What is then left over fills the groups up to their limits, that
    with the most survivors first (ties: the earlier group). No host-device synchronisation.

    Args:
        members: Tokens of each group, long ``[images, groups]``.
        survivors: Survivors of the suppression in each group, long ``[images, groups]``.
        caps: Limit of a group, long ``[images]``.
        totals: Tokens to keep of each image, long ``[images]``: at least as many as it has groups with members, and at
            most its members.
        room: What the limits must leave room for, long ``[images]``: at least ``totals``, at most the members.
        most: Largest entry of ``members`` that is possible, as a host integer.

    Returns:
        Tokens to keep of each group, long ``[images, groups]``; they sum to ``totals``.
    """
    limits = torch.minimum(caps[:, None], survivors)
    rises = torch.arange(most + 1, device=members.device)[:, None]
    enough = torch.minimum(limits[:, None] + rises, members[:, None]).sum(-1) >= room[:, None]
    limits = torch.minimum(limits + enough.int().argmax(1, keepdim=True), members)

    base = members.clamp(max=1)
    spare = (totals - base.sum(1))[:, None]
    parts = survivors.cumsum(1) * spare
    count = survivors.sum(1, keepdim=True).clamp(min=1)
    doubled = 2 * parts + count  # floor(parts / count + 1 / 2), in integers
    shares = doubled // (2 * count)
    shares -= ((doubled % (2 * count) == 0) & (shares % 2 == 1)).long()
    shares[:, 1:] -= shares[:, :-1].clone()
    quotas = torch.minimum(base + shares, limits)

    order = survivors.argsort(dim=1, descending=True, stable=True)
    free = (limits - quotas).gather(1, order)
    left = (totals - quotas.sum(1))[:, None] - (free.cumsum(1) - free)
    return quotas.scatter_add(1, order, torch.minimum(free, left.clamp(min=0)))
