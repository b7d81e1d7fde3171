"""Density-peak clustering by nearest neighbours (DPC-kNN), and the mean of every cluster."""

import torch
from torch import Tensor


def dpc_knn(
    states: Tensor, valid: Tensor, clusters: Tensor, most_neighbours: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Cluster the vectors of many images at once, and average every cluster.

    The density of a vector is ``exp(-mean squared distance to its k nearest neighbours)``. The vector itself counts as
    its nearest neighbour, k is the number of clusters (as in SparseVLM's published code) or a smaller number, and
    distances are divided by ``sqrt(dim)``. The separation of a vector is its distance to the nearest vector of higher
    density; for the densest vector it is the largest distance of all. The vectors with the largest product of density
    and separation are the cluster centres. Every other vector joins its nearest centre.

    Ties: of equal densities the earlier vector counts as denser; of equal products the earlier vector is the centre;
    of equally near centres the earlier one is joined. The published code adds random noise to the densities instead.
    No host-device synchronisation.

    Source: "Study on density peaks clustering based on k-nearest neighbors and principal component analysis"
    (Knowledge-Based Systems 99, 2016), as used in "SparseVLM: Visual Token Sparsification for Efficient
    Vision-Language Model Inference", arXiv 2410.04417.

    Args:
        states: Floating ``[images, n, dim]``.
        valid: Entries that are vectors and not padding, bool ``[images, n]``.
        clusters: Number of clusters, long ``[images]``, at most the number of valid entries; 0 for none.
        most_neighbours: Largest k; None for no limit.

    Returns:
        The cluster centres, bool ``[images, n]``; the cluster means, float32 ``[images, n, dim]``, at the centres (0
        elsewhere); and the centre of each vector, long ``[images, n]`` (undefined in an image without clusters).
    """
    states = states.float().masked_fill(~valid[:, :, None], 0.0)
    count = states.shape[1]
    pairs = valid[:, :, None] & valid[:, None, :]
    # differences instead of expanded products: equal vectors must have distance 0
    distance = torch.cdist(states, states, compute_mode="donot_use_mm_for_euclid_dist") / states.shape[-1] ** 0.5
    distance = distance.masked_fill(~pairs, torch.inf)

    nearest = distance.sort(dim=-1).values.square().cumsum(-1)
    neighbours = clusters.clamp(min=1, max=most_neighbours)
    last = (neighbours - 1)[:, None, None].expand(-1, count, 1)
    density = (-nearest.gather(-1, last)[:, :, 0] / neighbours[:, None]).exp()

    order = torch.arange(count, device=states.device)
    one, other = density[:, :, None], density[:, None, :]
    denser = ((other > one) | ((other == one) & (order < order[:, None]))) & pairs
    largest = distance.masked_fill(~pairs, 0.0).amax((1, 2))
    separation = distance.masked_fill(~denser, torch.inf).amin(-1).minimum(largest[:, None])
    ranked = (separation * density).masked_fill(~valid, -torch.inf).argsort(dim=1, descending=True, stable=True)
    centres = torch.zeros_like(valid).scatter(1, ranked, order < clusters[:, None]) & valid

    centre = distance.masked_fill(~centres[:, None, :], torch.inf).argmin(-1)  # of each vector
    centre = torch.where(centres, order, centre)
    member = (centre[:, None, :] == order[:, None]) & centres[:, :, None] & valid[:, None, :]
    weight = member.float() / member.sum(-1, keepdim=True).clamp(min=1)
    return centres, weight @ states, centre
