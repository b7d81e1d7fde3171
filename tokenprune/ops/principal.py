"""Groups of tokens that lie along the same principal component."""

import torch
from torch import Tensor


def principal_groups(states: Tensor, valid: Tensor, counts: Tensor, most: int) -> Tensor:
    """Assign every token of many images to the principal component in which it weighs most.

    An image is a matrix with one column per token and one row per channel, and its entries are the sigmoids of the
    states. From every column its own mean is subtracted. The components are the right singular vectors of the matrix
    with the largest singular values; a token's weight in one is the absolute value of its entry, so signs do not
    matter. Ties go to the component with the larger singular value.

    The decomposition is exact and in float64: a Gram matrix of float32 would lose the small singular values. It waits
    for the device on CUDA.

    Args:
        states: Floating ``[images, n, dim]``. What is not finite counts as 0.
        valid: Entries that are tokens and not padding, bool ``[images, n]``.
        counts: Number of components of each image, long ``[images]``.
        most: Largest entry of ``counts``, as a host integer, at most ``n``.

    Returns:
        The component of each token, 0 for that with the largest singular value, long ``[images, n]``; -1 for padding.
    """
    columns = states.float().sigmoid().double().nan_to_num()
    columns = (columns - columns.mean(-1, keepdim=True)).masked_fill(~valid[:, :, None], 0.0)
    vectors: Tensor = torch.linalg.eigh(columns @ columns.transpose(1, 2)).eigenvectors.flip(-1)[..., :most]
    is_component = torch.arange(most, device=counts.device) < counts[:, None]
    weights = vectors.abs().masked_fill(~is_component[:, None, :], -1.0)
    return weights.argmax(-1).masked_fill(~valid, -1)
