"""quanto without a compiler: it builds an extension in C++ when its cache is used first, on CPUs."""

from __future__ import annotations

from importlib import import_module
from types import SimpleNamespace

import torch
from torch import Tensor


def unpack(packed: Tensor, bits: int) -> Tensor:
    """The numbers of ``bits`` bits in the bytes of a tensor: first the lowest bits of all bytes, then the next ones."""
    mask = 2**bits - 1
    return torch.cat([(packed >> shift) & mask for shift in range(0, 8, bits)])


def use_no_extension() -> None:
    """Let :func:`unpack` stand for the extension."""
    import_module("optimum.quanto.library.extensions.cpp").ext._lib = SimpleNamespace(unpack=unpack)
