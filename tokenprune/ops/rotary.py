"""Rotary embedding angles, given as cosines and sines."""

from torch import Tensor


def turn_back(cos: Tensor, sin: Tensor, first_cos: Tensor, first_sin: Tensor) -> tuple[Tensor, Tensor]:
    """Rotary cosines and sines counted from a first position: the angles less that position's angles.

    Args:
        cos: Cosines ``[..., rows, dim]``; models may scale cosines and sines by one factor.
        sin: Sines, as ``cos``.
        first_cos: Cosines of the first position ``[..., 1, dim]``.
        first_sin: Its sines.

    Returns:
        Cosines and sines, with the model's factor.
    """
    scale = (first_cos.float().square() + first_sin.float().square()).sqrt()
    first_cos, first_sin = first_cos.float() / scale, first_sin.float() / scale
    turned = cos.float() * first_cos + sin.float() * first_sin, sin.float() * first_cos - cos.float() * first_sin
    return turned[0].to(cos.dtype), turned[1].to(sin.dtype)
