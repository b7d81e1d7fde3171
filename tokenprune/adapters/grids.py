"""Coordinates of the tokens of an item: (frame, row, column), -1 for a token that has none."""

import math

import torch
from torch import Tensor

from tokenprune.adapters.items import run_lengths


def lattice(frames: int, rows: int, columns: int, first_frame: int = 0) -> Tensor:
    """Coordinates of ``frames`` grids of tokens, one after the other, long ``[tokens, 3]``."""
    frame = torch.arange(first_frame, first_frame + frames)
    return torch.cartesian_prod(frame, torch.arange(rows), torch.arange(columns)).reshape(-1, 3)


def square(size: int, frames: int = 1) -> Tensor | None:
    """Coordinates of frames of square grids, each with or without a class token (-1) before it, long ``[size, 3]``.

    None where ``size`` tokens do not make such frames.
    """
    each, rest = divmod(size, max(frames, 1))
    side = math.isqrt(each)
    if rest or each - side * side > 1 or not side:
        return None
    patches = lattice(frames, side, side)
    if each == side * side:
        return patches
    with_class_tokens = torch.full((frames, each, 3), -1)
    with_class_tokens[:, 1:] = patches.reshape(frames, -1, 3)
    return with_class_tokens.reshape(-1, 3)


def broken_rows(positions: Tensor) -> Tensor | None:
    """Coordinates of an image whose rows are separated by other tokens (Pixtral's row breaks), long ``[size, 3]``.

    None where the rows differ in length.

    Args:
        positions: Sequence positions of the image's tokens, long, on the host.
    """
    lengths = run_lengths(positions)
    return lattice(1, len(lengths), lengths[0]) if len(set(lengths)) == 1 else None
