"""Selections written as the authors' published code computes them, for the paired times of `selection.py`.

Every function has the loops, the vectorisation and the order of complexity of the published implementation, in words of
our own. It gets the visual tokens as plain tensors of one image or video and returns the indices of the kept tokens.
The published functions then gather the kept rows; that is left out here, as it is in our pruners.

Not a reference of the methods: the tests of the pruners have those. Where the published code and ours differ by design
(see "Differs" in `docs/methods/`), these functions do what the published code does.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize


def evs(states: Tensor, frames: int, rate: float) -> Tensor:
    """EVS as in vLLM: one comparison of all frames with their predecessors, one sort.

    Args:
        states: Floating ``[n, dim]``, frame by frame.
        frames: Number of frames.
        rate: Share to drop.
    """
    video = states.view(frames, -1, states.shape[-1])
    change = 1 - cosine_similarity(video[1:], video[:-1], dim=-1)
    first = torch.full_like(change[:1], 255.0)
    ranked = torch.cat([first, change]).flatten().argsort(descending=True, stable=True)
    return ranked[: max(video.shape[1], int(len(states) * (1 - rate)))]


def dycoke(states: Tensor, frames: int, rate: float) -> Tensor:
    """DyCoke's temporal merging: two loops over pairs of frames, once for similarities, once for the choice.

    The third frame of the last group stays whole, as in the published loop.

    Args:
        states: Floating ``[n, dim]``, frame by frame.
        frames: Number of frames, even and more than 4.
        rate: Share that a compared frame loses.
    """
    size = len(states) // frames
    count = int((1 - rate) * size)
    number = torch.arange(len(states), device=states.device)

    def frame(index: int) -> Tensor:
        return states[index * size : (index + 1) * size]

    pairs = torch.stack(
        [
            cosine_similarity(normalize(frame(index), dim=1), normalize(frame(index + 1), dim=1), dim=1)
            for index in range(0, frames - 1, 2)
        ]
    )
    kept = []
    for index in range(0, frames - 1, 2):
        least = pairs[index // 2].topk(count, largest=False).indices
        kept += [number[index * size : (index + 1) * size], least + (index + 1) * size]
    wide = torch.stack(
        [cosine_similarity(frame(index), frame(index + 2), dim=1) for index in range(0, frames - 4, 4)],
    )
    for index in range(0, frames - 4, 4):
        kept[index + 2] = wide[index // 4].topk(count, largest=False).indices + (index + 2) * size
    return torch.cat(kept)


def holov(states: Tensor, attention: Tensor, crops: int, keep: int, beta: float = 0.09) -> Tensor:
    """HoloV: a loop over the crops for their scores, a second one for the choice within each crop.

    Args:
        states: Floating ``[n, dim]``.
        attention: ``[n]``.
        crops: Number of crops.
        keep: Number of tokens to keep.
        beta: Weight of the variance.
    """
    epsilon = 1e-6
    sizes = [len(states) // crops + (number < len(states) % crops) for number in range(crops)]
    tokens, weights = states.split(sizes), attention.split(sizes)
    scores = []
    for part, weight in zip(tokens, weights, strict=True):
        size = len(part)
        unit = part / (part.norm(dim=1, keepdim=True) + epsilon)
        similarity = (unit @ unit.T) * (1 - torch.eye(size, device=part.device))
        mean = similarity.sum(1) / (size - 1)
        variance = ((similarity - mean[:, None]) ** 2).sum(1) / (size - 1)
        scaled = weight * 1e3
        factor = scaled.abs().mean() / (variance.abs().mean() + epsilon)
        scores.append((scaled + beta * variance * factor).mean())
    score = torch.stack(scores)
    share = score / (score.sum() + epsilon)
    quotas = (share * keep).floor().long()
    left = keep - quotas.sum()
    if left > 0:
        for index in share.topk(min(int(left), crops)).indices[:left]:
            quotas[index] += 1
    kept, start = [], 0
    for size, weight, quota in zip(sizes, weights, quotas, strict=True):
        if quota >= size:
            kept.append(torch.arange(start, start + size, device=states.device))
        elif quota > 0:
            kept.append(weight.topk(min(int(quota), size)).indices + start)
        start += size
    return torch.cat(kept)[:keep]


def tome(keys: Tensor, states: Tensor | None, keep: int, steps: int) -> Tensor:
    """ToMe: in every step a bipartite matching, and weighted means of what merges, with a class token in front.

    Args:
        keys: ``[n, key_dim]``; means over the merged tokens replace them.
        states: ``[n, dim]``, merged like the keys; None merges the keys only.
        keep: Number of tokens to keep.
        steps: Number of steps.
    """
    per_step = -(-(len(keys) - keep) // steps)
    parts = [keys] if states is None else [keys, states]
    merged = [torch.cat([part[:1], part])[None] for part in parts]  # the class token never merges; its value is unused
    size = torch.ones_like(merged[0][..., :1])
    number = torch.arange(-1, len(keys), device=keys.device)[None, :, None]
    while number.shape[1] - 1 > keep:
        r = min(per_step, number.shape[1] - 1 - keep, (number.shape[1] - 1) // 2)
        unit = merged[0] / merged[0].norm(dim=-1, keepdim=True)
        score = unit[:, ::2] @ unit[:, 1::2].transpose(-1, -2)
        score[:, 0] = -torch.inf
        best, nearest = score.max(dim=-1)
        order = best.argsort(dim=-1, descending=True)[..., None]
        rest, source = order[:, r:].sort(dim=1).values, order[:, :r]
        target = nearest[..., None].gather(1, source)

        def merge(values: Tensor, rest: Tensor = rest, source: Tensor = source, target: Tensor = target) -> Tensor:
            first, second = values[:, ::2], values[:, 1::2]
            width = values.shape[-1]
            added = first.gather(1, source.expand(-1, -1, width))
            summed = second.scatter_reduce(1, target.expand(-1, -1, width), added, "sum")
            return torch.cat([first.gather(1, rest.expand(-1, -1, width)), summed], dim=1)

        total = merge(size)
        merged = [merge(values * size) / total for values in merged]
        size = total
        number = torch.cat([number[:, ::2].gather(1, rest), number[:, 1::2]], dim=1)
    return number[0, 1:, 0]


def cdpruner(states: Tensor, relevance: Tensor, keep: int) -> Tensor:
    """CDPruner: the kernel of relevance and cosines, and the greedy choice with a Cholesky factor that grows.

    Args:
        states: Floating ``[1, n, dim]``.
        relevance: ``[1, n]``.
        keep: Number of tokens to keep.
    """
    unit = (states / states.norm(dim=-1, keepdim=True)).float()
    similarity = unit @ unit.transpose(1, 2)
    weight = (relevance - relevance.min() + 1e-6) / (relevance.max() - relevance.min())
    kernel = weight[:, :, None] * similarity * weight[:, None]
    batch = torch.arange(len(states))
    factor = torch.zeros(keep, *weight.shape, device=states.device)
    gains = kernel.diagonal(dim1=1, dim2=2).clone()
    picked = torch.empty(keep, len(states), dtype=torch.long, device=states.device)
    for step in range(keep):
        pick = gains.argmax(dim=-1)
        picked[step] = pick
        projected = torch.einsum("tb,tbn->bn", factor[:step, batch, pick], factor[:step])
        factor[step] = (kernel[batch, pick] - projected) / gains[batch, pick].sqrt()[:, None]
        gains -= factor[step].square()
        gains[batch, pick] = -torch.inf
    return picked.T.sort().values[0]


def divprune(states: Tensor, keep: int) -> Tensor:
    """DivPrune: every step takes the minimum over the rows of all chosen tokens again.

    Args:
        states: Floating ``[n, dim]``.
        keep: Number of tokens to keep.
    """
    unit = states / states.norm(dim=1, keepdim=True)
    distance = 1.0 - unit @ unit.T
    picked = torch.empty(keep, dtype=torch.long, device=states.device)
    for step in range(keep):
        if step == 0:
            nearest = distance.topk(2, dim=0, largest=False).values[1]
        else:
            nearest = distance.index_select(0, picked[:step]).min(dim=0).values
        picked[step] = nearest.argmax()
    return picked


def vispruner(states: Tensor, attention: Tensor, keep: int) -> Tensor:
    """VisPruner: half by attention; the others are thinned out, with the cosines of the list computed in every round.

    Args:
        states: Floating ``[n, dim]``.
        attention: ``[n]``.
        keep: Number of tokens to keep.
    """
    order = attention.argsort(descending=True)
    important, listed = order[: keep // 2], order[keep // 2 :]
    unit = states / states.norm(dim=-1, keepdim=True)
    while (dropped := min(8, len(listed) - (keep - keep // 2))) > 0:
        rows = unit[listed]
        score = (rows[::2] @ rows[1::2].T).max(dim=-1).values
        listed = torch.cat([listed[::2][score.argsort(descending=True)[dropped:]], listed[1::2]])
    return torch.cat([important, listed])


def scope(states: Tensor, attention: Tensor, keep: int) -> Tensor:
    """SCOPE: in NumPy on the host; every step computes the gains of all tokens that are left, from the whole matrix.

    Args:
        states: Floating ``[n, dim]``.
        attention: ``[n]``.
        keep: Number of tokens to keep.
    """
    import numpy as np

    unit = states / states.norm(dim=1, keepdim=True)
    similarity, saliency = (unit @ unit.T).cpu().numpy(), attention.cpu().numpy()
    everything = np.ones(len(saliency), dtype=bool)
    chosen = np.zeros(len(saliency), dtype=bool)
    covered = np.zeros(len(saliency), dtype=np.float32)
    gains = np.zeros(len(saliency))
    for _ in range(keep):
        left = ~chosen
        growth = np.maximum(0.0, similarity[np.ix_(everything, left)] - covered[:, None]).sum(axis=0)
        gains[left] = growth * saliency[left] ** 1.0
        pick = int(gains.argmax())
        chosen[pick], gains[pick] = True, -np.inf
        covered = np.maximum(covered, similarity[:, pick])
    return torch.from_numpy(chosen.nonzero()[0])


def visionzip(states: Tensor, keys: Tensor, attention: Tensor, keep: int, contextual: int) -> tuple[Tensor, Tensor]:
    """VisionZip: the most attended tokens; every n-th of the others takes in the mean of those that are like it.

    Args:
        states: Floating ``[n, dim]``.
        keys: ``[n, key_dim]``.
        attention: ``[n]``.
        keep: Number of tokens to keep.
        contextual: How many of them are contextual.

    Returns:
        The kept indices, and the new states of the contextual tokens, which the published code computes, too.
    """
    dominant = attention.topk(keep - contextual).indices
    mask = torch.ones_like(attention, dtype=torch.bool).scatter(0, dominant, False)
    others = mask.nonzero()[:, 0]
    key, hidden = keys[mask], states.masked_select(mask[:, None]).view(-1, states.shape[-1])
    unit = key / key.norm(dim=-1, keepdim=True)
    place = torch.arange(len(unit), device=states.device)
    target = place[:: max(1, len(unit) // contextual)][:contextual]
    merged = ~torch.isin(place, target)
    nearest = (unit[merged] @ unit[target].T).argmax(dim=1)
    member = torch.zeros(len(nearest), contextual, dtype=states.dtype, device=states.device)
    member.scatter_(1, nearest[:, None], 1)
    mean = (member.T @ hidden[merged]) / member.sum(dim=0).clamp(min=1)[:, None]
    return torch.cat([dominant, others[target]]), hidden[target] + mean


def vscan(states: Tensor, shallow: Tensor, deep: Tensor, keep: int, columns: int) -> Tensor:
    """VScan: windows one by one, then the deep layer; the merging compares all pairs with the features side by side.

    Args:
        states: Floating ``[n, dim]``.
        shallow: Attention of the shallow layer, ``[n]``.
        deep: Attention of the deep layer, ``[n]``.
        keep: Number of tokens to keep.
        columns: Columns of the grid; windows are 6 x 6.
    """
    grid = torch.arange(len(states), device=states.device).view(-1, columns)
    corners = [(row, column) for row in range(0, len(grid), 6) for column in range(0, columns, 6)]
    local = []
    for row, column in corners:
        window = grid[row : row + 6, column : column + 6].flatten()
        local.append(window[shallow[window].topk(keep // 2 // len(corners)).indices])
    first = torch.cat(local)
    rest = deep.clone()
    rest[first] = 0
    mask = torch.zeros_like(deep, dtype=torch.bool)
    mask[torch.cat([first, rest.topk(keep - len(first)).indices])] = True
    kept, others = states[mask], states[~mask]
    nearest = cosine_similarity(others[:, None], kept[None], dim=2).argmax(dim=1)
    counts = torch.ones(len(kept), device=states.device).index_add_(0, nearest, torch.ones(len(nearest)).to(states))
    kept.index_add_(0, nearest, others)
    kept /= counts[:, None]
    return mask.nonzero()[:, 0]


def hiprune(middle: Tensor, deep: Tensor, keep: int, alpha: float, columns: int) -> Tensor:
    """HiPrune: anchors and the tokens beside them by adding numbers, the rest by the deep layer.

    Args:
        middle: Attention of the object layer, ``[n]``.
        deep: Attention of the deep layer, ``[n]``.
        keep: Number of tokens to keep.
        alpha: Share of anchors and their neighbours.
        columns: Columns of the grid.
    """
    anchors = middle.topk(round(keep * alpha / 5)).indices
    around = torch.cat([anchors, anchors - 1, anchors + 1, anchors - columns, anchors + columns])
    around = around.clamp(0, len(middle) - 1).unique(sorted=False)
    taken = torch.zeros_like(deep).index_fill_(0, around, 1)
    registers = (deep - taken).topk(keep - len(around)).indices
    return torch.cat([around, registers]).sort().values


def entropyprune(query: Tensor, keep: int) -> Tensor:
    """EntropyPrune without the trace: eigenvalues of the head-by-head matrix of every token, in float64.

    Args:
        query: ``[n, heads, head_dim]``.
        keep: Number of tokens to keep.
    """
    centred = query - query.mean(dim=-2, keepdim=True)
    gram = torch.einsum("nhd,nkd->nhk", centred.double(), centred.double()) / centred.shape[-2]
    eigenvalues = torch.linalg.eigvalsh(gram).clamp_min(1e-10)
    entropy = -(eigenvalues * eigenvalues.log()).sum(-1) / torch.tensor(float(gram.shape[-1])).log()
    return entropy.topk(keep).indices
