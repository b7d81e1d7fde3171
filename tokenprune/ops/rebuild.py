"""How well tokens are rebuilt from a few others: a basis by farthest-point sampling, and the errors of rebuilding."""

from collections.abc import Sequence

import torch
from torch import Tensor

from tokenprune.ops.gather import rows_at, with_rows
from tokenprune.ops.seeds import mixed_seed

#: Added to the diagonal of the basis' Gram matrix before it is solved, as in ApET's published code.
RIDGE = 1e-5


def random_shares(images: Sequence[Sequence[int]], sample_ids: Sequence[int], seed: int, most: int) -> Tensor:
    """A uniform number from 0 to 1 for every image. It depends on the seed, the sample and the image's number in it.

    Args:
        images: One entry per image, per sample; what the entries are does not matter.
        sample_ids: One integer per sample.
        seed: The seed.
        most: The most images that a sample has.

    Returns:
        Float64 ``[samples * most]``, on the host; 0 for missing images.
    """
    shares = torch.zeros(len(images), most, dtype=torch.float64)
    for row, (own, sample) in enumerate(zip(images, sample_ids, strict=True)):
        # the generator is on the host, so that the numbers are the same on every device
        generator = torch.Generator().manual_seed(mixed_seed(seed, sample))
        shares[row, : len(own)] = torch.rand(len(own), generator=generator, dtype=torch.float64)
    return shares.flatten()


def farthest_points(states: Tensor, candidates: Tensor, shares: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Farthest-point sampling in many images at once, from given starts.

    The first point of an image is the candidate with the number ``share * candidates``, rounded down. Each further
    point is the candidate whose nearest point, by Euclidean distance, is farthest. Ties keep the earlier position: if
    all candidates are copies of points, the first candidate is taken again. No host-device synchronisation.

    Args:
        states: Floating ``[images, n, dim]``; distances are computed in float32.
        candidates: Tokens that may be points, bool ``[images, n]``.
        shares: Where the first point is among the candidates, from 0 to below 1, floating ``[images]``.
        count: Number of points.

    Returns:
        The points in the order in which they were taken, long ``[images, count]``; and which of them there are: no more
        than candidates, bool of that shape.
    """
    states = states.float()
    sizes = candidates.sum(1)
    first = (shares * sizes).long()[:, None]
    point = (candidates & (candidates.long().cumsum(1) - 1 == first)).int().argmax(1, keepdim=True)
    nearest = torch.full(candidates.shape, torch.inf, device=states.device).masked_fill(~candidates, -torch.inf)
    points = []
    for _ in range(count):
        points.append(point)
        distance = (states - rows_at(states, point)).square().sum(-1)
        nearest = torch.minimum(nearest, distance)
        point = nearest.argmax(1, keepdim=True)
    exists = torch.arange(count, device=states.device) < sizes[:, None]
    return torch.cat(points, 1), exists


def rebuild_errors(states: Tensor, points: Tensor, exists: Tensor) -> Tensor:
    """Distance of every token to what a linear combination of the points makes of it.

    With the points ``S`` as rows, the coefficients of a token ``x`` are ``(S S^T + 1e-5 I)^-1 S x``, and the error is
    the norm of ``x - S^T c``. Computed in float64, and returned in float32: copies of a token have equal errors. Error
    codes of the solver are not read, so that nothing waits for the device.

    Args:
        states: Floating ``[images, n, dim]``.
        points: The tokens to rebuild from, long ``[images, count]``.
        exists: Which of the points there are, bool ``[images, count]``.

    Returns:
        Float32 ``[images, n]``. A token of zeros has error 0.
    """
    states = states.double()
    basis = rows_at(states, points).masked_fill(~exists[:, :, None], 0.0)
    gram = basis @ basis.mT
    gram.diagonal(dim1=1, dim2=2).add_(RIDGE)
    coefficients, _ = torch.linalg.solve_ex(gram, basis @ states.mT)
    rest = torch.baddbmm(states, coefficients.mT, basis, alpha=-1)
    errors: Tensor = torch.linalg.vector_norm(rest, dim=-1).float()
    return errors


def overwrite(states: Tensor, tokens: Tensor, rank: Tensor, rows: Tensor, exists: Tensor, share: float) -> Tensor:
    """Put given rows into tokens: the first row into the token with the highest rank, and so on.

    Args:
        states: Floating ``[images, n, dim]``.
        tokens: The tokens, bool ``[images, n]``; no more of an image than ``most``.
        rank: Floating ``[images, n]``; ties keep the earlier position.
        rows: Floating ``[images, most, dim]``.
        exists: Which of the rows there are, bool ``[images, most]``; a token whose row there is not keeps its state.
        share: Weight of the row, 0 to 1; the rest is that of the token's own state.

    Returns:
        ``[images, n, dim]``.
    """
    place = rank.masked_fill(~tokens, -torch.inf).argsort(dim=1, descending=True, stable=True)[:, : rows.shape[1]]
    if place.shape[1] == 0:
        return states
    rows, exists = rows[:, : place.shape[1]], exists[:, : place.shape[1]]
    old = rows_at(states, place)
    change = (tokens.gather(1, place) & exists)[:, :, None]
    return with_rows(states, place, torch.where(change, share * rows + (1 - share) * old, old))
