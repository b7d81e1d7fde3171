"""Whole entries of one axis, by index; and the indices of marked entries.

``Tensor.gather`` with an index that is expanded over the feature dimension looks up every single element. On a CPU,
copying whole entries takes a fraction of that time.
"""

import torch
from torch import Tensor

#: Elements to copy at a time where no more is needed: such a copy stays in a CPU's cache, and its memory is used again.
CHUNK = 2**20


def rows_at(states: Tensor, index: Tensor) -> Tensor:
    """The entries of ``states`` at ``index``, sample by sample. No host-device synchronisation.

    Args:
        states: ``[batch, n, ...]``.
        index: Indices on the axis ``n``, long ``[batch, m]``.

    Returns:
        ``[batch, m, ...]``, a copy.
    """
    picked = states.flatten(0, 1).index_select(0, _flat(states, index))
    return picked.view(*index.shape, *states.shape[2:])


def with_rows(states: Tensor, index: Tensor, rows: Tensor) -> Tensor:
    """A copy of ``states`` with other entries at ``index``. No host-device synchronisation.

    Args:
        states: ``[batch, n, ...]``.
        index: Indices on the axis ``n``, each of them once per sample, long ``[batch, m]``.
        rows: The new entries, ``[batch, m, ...]``.

    Returns:
        ``[batch, n, ...]``.
    """
    return states.flatten(0, 1).index_copy(0, _flat(states, index), rows.flatten(0, 1)).view(states.shape)


def marked_first(mask: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """The places of the marked entries of each sample, in order, and then of others. No host-device synchronisation.

    Args:
        mask: Marked entries, bool ``[batch, n]``.
        most: Number of places: at least that of the marked entries of any sample, as a host integer.

    Returns:
        The places, long ``[batch, most]`` (or all ``n``), each of them once; and which are marked, bool, of that shape.
    """
    place = (~mask).int().argsort(dim=1, stable=True)[:, :most]
    return place, mask.gather(1, place)


def _flat(states: Tensor, index: Tensor) -> Tensor:
    """The index on the flattened axes (batch, n), long ``[batch * m]``."""
    first = torch.arange(len(index), device=index.device) * states.shape[1]
    return (index + first[:, None]).flatten()
