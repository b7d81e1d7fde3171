"""Cosine similarity of tokens, computed in float32 whatever the model's dtype."""

from torch import Tensor
from torch.nn.functional import normalize


def cosine_similarity(one: Tensor, other: Tensor) -> Tensor:
    """Cosine similarity of every vector of ``one`` to every vector of ``other``; 0 for a zero vector.

    Args:
        one: Floating ``[..., n, dim]``.
        other: Floating ``[..., m, dim]``.

    Returns:
        Float32 ``[..., n, m]``.
    """
    return normalize(one.float(), dim=-1) @ normalize(other.float(), dim=-1).transpose(-1, -2)


def self_similarity(states: Tensor) -> Tensor:
    """Cosine similarity of all vectors to each other; the diagonal is set to 1, so that rounding breaks no ties there.

    Args:
        states: Floating ``[..., n, dim]``.

    Returns:
        Float32 ``[..., n, n]``.
    """
    unit = normalize(states.float(), dim=-1)
    similarity = unit @ unit.transpose(-1, -2)
    similarity.diagonal(dim1=-2, dim2=-1).fill_(1.0)
    return similarity
