"""Which numbers of a weight are read."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tokenprune.fingerprint.sampling import EVERY, LEAST, WHOLE, places, sampled


@pytest.mark.parametrize("count", [WHOLE + 1, 896 * 896, 2**22, 4096 * 4097, 2**31 + 5])
def test_every_run_of_numbers_holds_one_place(count: int) -> None:
    found = places(count, seed=7)
    assert len(found) == max(LEAST, -(-count // EVERY))
    edges = np.arange(len(found) + 1) * count // len(found)
    assert (found >= edges[:-1]).all()
    assert (found < edges[1:]).all()


@pytest.mark.parametrize("width", [64, 896, 4096, 4097, 18944])
def test_the_places_lie_in_all_columns(width: int) -> None:
    """A stride would read one column of a matrix, or a few: that is what must not happen."""
    columns = places(4096 * width, seed=1) % width
    share = np.bincount(columns * 16 // width, minlength=16) / len(columns)
    assert (abs(share - 1 / 16) < 0.035).all()


def test_other_tensors_are_read_at_other_places_and_every_process_at_the_same() -> None:
    one, other = places(2**20, seed=1), places(2**20, seed=2)
    assert (one != other).mean() > 0.99
    assert places(2**20, seed=1).tolist() == one.tolist()
    assert one[:4].tolist() == [431, 1524, 2383, 3564]  # stored fingerprints depend on them


def test_the_seed_may_be_any_hash() -> None:
    assert (places(2**20, seed=2**64 - 1) < 2**20).all()


@pytest.mark.parametrize("shape", [(300, 400), (3, 200, 200), (2, 3, 100, 110)])
def test_layout_in_memory_does_not_matter(shape: tuple[int, ...]) -> None:
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    turned = tensor.transpose(0, -1).contiguous().transpose(0, -1)
    assert not turned.is_contiguous()
    assert sampled(turned, 3) == sampled(tensor, 3) == tensor.flatten()[places(tensor.numel(), 3)].numpy().tobytes()


@pytest.mark.parametrize("dtype", ["float64", "bfloat16", "float8_e4m3fn", "int8", "uint16", "bool", "complex64"])
def test_every_dtype_is_read(dtype: str) -> None:
    for count in (10, WHOLE + 10):
        tensor = torch.zeros(count, dtype=getattr(torch, dtype))
        assert len(sampled(tensor, 0)) == min(count, LEAST) * tensor.element_size()
