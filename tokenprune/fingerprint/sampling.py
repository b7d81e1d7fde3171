"""Picks the numbers of a tensor that are read: all of a small one, and those at scattered places of a large one."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

#: A tensor of at most so many numbers is read whole.
WHOLE = 2**14
#: Of a larger one at least so many numbers are read, and at least one of so many.
LEAST, EVERY = 2**10, 2**12


def places(count: int, seed: int) -> NDArray[np.int64]:
    """The places of a tensor whose numbers are read, in the order of the tensor's elements.

    The elements are cut into runs of equal length, and one place of every run is read. Which one is decided by a hash
    of the run's number: places at equal distances would lie in one column of most matrices.

    Args:
        count: Numbers of the tensor.
        seed: Below 2^64; tensors with different seeds are read at different places.

    Returns:
        Ascending positions below ``count``.
    """
    number = max(LEAST, -(-count // EVERY))
    edges = np.arange(number + 1, dtype=np.int64) * count // number
    starts = edges[:-1]
    offsets = _hash(np.arange(number, dtype=np.uint64) + np.uint64(seed)) % np.diff(edges).astype(np.uint64)
    return starts + offsets.astype(np.int64)


def _hash(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Neighbouring numbers become unrelated ones: the finaliser of SplitMix64, modulo 2^64."""
    mixed = numbers * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def sampled(tensor: Tensor, seed: int) -> bytes:
    """The bytes of the numbers that are read, whatever the tensor's layout in memory and its device.

    Args:
        tensor: Any tensor that holds its numbers.
        seed: See :func:`places`.

    Raises:
        RuntimeError: The tensor cannot be read; other errors are those of the tensor's class.
    """
    tensor = tensor.detach()
    if tensor.numel() > WHOLE:
        index = torch.from_numpy(places(tensor.numel(), seed)).to(tensor.device)
        # flattening a tensor that is not contiguous would copy all of it
        tensor = tensor.view(-1)[index] if tensor.is_contiguous() else tensor[torch.unravel_index(index, tensor.shape)]
    return content(tensor)


def content(tensor: Tensor) -> bytes:
    """The bytes of all numbers of a tensor; errors as for :func:`sampled`."""
    flat = tensor.detach().resolve_conj().resolve_neg().reshape(-1).cpu().contiguous()
    return flat.view(torch.uint8).numpy().tobytes()
