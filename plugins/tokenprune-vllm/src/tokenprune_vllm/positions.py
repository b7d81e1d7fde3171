"""Where kept tokens stand: the columns that carry their places, and the positions that the runner asks for.

A placeholder stands for the token that it will be when the vision tower has run. Its place is written into columns
behind the features. The runner hands the features back before the language model gets them, and asks for positions.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: Digits of one place, and their base: bfloat16 holds whole numbers up to 256 exactly.
BASE, DIGITS = 128, 3

#: Columns behind the features: the digits of three numbers.
COLUMNS = 3 * DIGITS


def written(places: Tensor, like: Tensor) -> Tensor:
    """Places as columns.

    Args:
        places: Three numbers per token, long ``[3, tokens]``, at least 0 and below ``BASE ** DIGITS``.
        like: Features, for their dtype and device.

    Returns:
        ``[tokens, COLUMNS]``.
    """
    digits = [places // BASE**power % BASE for power in reversed(range(DIGITS))]
    return torch.cat(digits).T.to(like)


def read(columns: Tensor) -> Tensor:
    """Places from their columns ``[tokens, COLUMNS]``, long ``[3, tokens]``."""
    digits = columns.round().long().T.unflatten(0, (DIGITS, 3))
    powers = torch.tensor([BASE**power for power in reversed(range(DIGITS))], device=columns.device)
    places: Tensor = (digits * powers[:, None, None]).sum(0)
    return places
