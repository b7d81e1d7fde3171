"""Density-peak clustering by nearest neighbours (DPC-kNN), and the mean of every cluster."""

from __future__ import annotations

import torch
from torch import Tensor


def dpc_knn(states: Tensor, valid: Tensor, clusters: Tensor) -> tuple[Tensor, Tensor]:
    """Cluster the vectors of many problems at once; every cluster becomes its mean.

    A vector's density is ``exp(-mean squared distance to its nearest neighbours)``, itself among these, with as many
    neighbours as there are clusters (as in SparseVLM's published code) and distances divided by ``sqrt(dim)``. Its
    separation is the distance to the nearest denser vector, for the densest the largest distance of all. Centres have
    the largest product of the two; every other vector joins its nearest centre. Of equal densities the earlier vector
    is the denser, of equal products the earlier is the centre, of equally near centres the earlier is joined: the
    published code adds random noise to the densities instead. No host-device synchronisation.

    Source: "Study on density peaks clustering based on k-nearest neighbors and principal component analysis"
    (Knowledge-Based Systems 99, 2016), as used in "SparseVLM: Visual Token Sparsification for Efficient
    Vision-Language Model Inference", arXiv 2410.04417.

    Args:
        states: Floating ``[problems, n, dim]``.
        valid: Which entries are vectors and not padding, bool ``[problems, n]``.
        clusters: Clusters of each problem, long ``[problems]``, at most its valid entries; 0 for none.

    Returns:
        Where the centres are, bool ``[problems, n]``; and the mean of every centre's cluster at its
        place, zeros elsewhere, float32 ``[problems, n, dim]``.
    """
    states = states.float().masked_fill(~valid[:, :, None], 0.0)
    count = states.shape[1]
    pairs = valid[:, :, None] & valid[:, None, :]
    # subtracted, not expanded into products: equal vectors must be at distance 0
    distance = torch.cdist(states, states, compute_mode="donot_use_mm_for_euclid_dist") / states.shape[-1] ** 0.5
    distance = distance.masked_fill(~pairs, torch.inf)

    nearest = distance.sort(dim=-1).values.square().cumsum(-1)
    last = (clusters - 1).clamp(min=0)[:, None, None].expand(-1, count, 1)
    density = (-nearest.gather(-1, last)[:, :, 0] / clusters.clamp(min=1)[:, None]).exp()

    order = torch.arange(count, device=states.device)
    one, other = density[:, :, None], density[:, None, :]
    denser = ((other > one) | ((other == one) & (order < order[:, None]))) & pairs
    largest = distance.masked_fill(~pairs, 0.0).amax((1, 2))
    separation = distance.masked_fill(~denser, torch.inf).amin(-1).minimum(largest[:, None])
    ranked = (separation * density).masked_fill(~valid, -torch.inf).argsort(dim=1, descending=True, stable=True)
    centres = torch.zeros_like(valid).scatter(1, ranked, order < clusters[:, None]) & valid

    owner = distance.masked_fill(~centres[:, None, :], torch.inf).argmin(-1)
    owner = torch.where(centres, order, owner)
    member = (owner[:, None, :] == order[:, None]) & centres[:, :, None] & valid[:, None, :]
    weight = member.float() / member.sum(-1, keepdim=True).clamp(min=1)
    return centres, weight @ states
