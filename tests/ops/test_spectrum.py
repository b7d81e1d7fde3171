"""The high-pass filter against a Fourier transform that is summed term by term, in float64."""

from __future__ import annotations

import cmath
import math

import pytest
import torch
from torch import Tensor

from tokenprune.ops.spectrum import high_pass


def frequency(index: int, size: int) -> int:
    """The frequency of an entry of a transform: the upper half stands for negative ones."""
    return index if 2 * index < size else index - size


def literal(frame: Tensor, cutoff: float) -> list[list[float]]:
    """Mean magnitude of the filtered channels at each place, of states ``[rows, columns, dim]``."""
    rows, columns, dim = frame.shape
    width = cutoff * min(rows // 2, columns // 2)
    places = [(row, column) for row in range(rows) for column in range(columns)]
    energy = [[0.0] * columns for _ in range(rows)]
    for channel in range(dim):
        values = {place: float(frame[*place, channel]) for place in places}
        spectrum = {}
        for u, v in places:
            total = sum(
                value * cmath.exp(-2j * math.pi * (u * row / rows + v * column / columns))
                for (row, column), value in values.items()
            )
            squared = frequency(u, rows) ** 2 + frequency(v, columns) ** 2
            kept = (1.0 if squared else 0.0) if width == 0 else 1 - math.exp(-squared / (2 * width**2))
            spectrum[u, v] = total * kept
        for row, column in places:
            back = sum(
                value * cmath.exp(2j * math.pi * (u * row / rows + v * column / columns))
                for (u, v), value in spectrum.items()
            )
            energy[row][column] += abs(back) / (rows * columns) / dim
    return energy


def coordinates(shapes: list[tuple[int, int]]) -> tuple[Tensor, Tensor, Tensor]:
    """Frames, places and sizes of the tokens of some frames, one after the other."""
    frames, places, sizes = [], [], []
    for number, (rows, columns) in enumerate(shapes):
        for row in range(rows):
            for column in range(columns):
                frames.append(number)
                places.append((row, column))
                sizes.append((rows, columns))
    return torch.tensor([frames]), torch.tensor([places]), torch.tensor([sizes])


@pytest.mark.parametrize("cutoff", [0.1, 0.3, 1.0, 5.0])
@pytest.mark.parametrize(
    "shapes", [[(4, 4)], [(5, 5)], [(6, 4)], [(3, 7)], [(1, 5)], [(4, 1)], [(1, 1)], [(2, 9)], [(4, 4), (3, 5), (4, 4)]]
)
def test_all_shapes(shapes: list[tuple[int, int]], cutoff: float) -> None:
    """Even and odd sides, single rows, and several frames of an image."""
    frames, places, sizes = coordinates(shapes)
    noise = torch.Generator().manual_seed(len(shapes))
    states = torch.randn(1, frames.shape[1], 3, generator=noise)
    found = high_pass(states, frames, places, sizes, cutoff, max(rows * columns for rows, columns in shapes))
    start = 0
    for rows, columns in shapes:
        own = slice(start, start + rows * columns)
        expected = literal(states[0, own].view(rows, columns, 3).double(), cutoff)
        assert found[0, own].tolist() == pytest.approx([value for row in expected for value in row], abs=2e-6)
        start += rows * columns


def test_a_large_grid_is_the_fast_transform() -> None:
    """24 x 24, where the frequencies that the Gaussian does not reach are left out."""
    frames, places, sizes = coordinates([(24, 24)])
    states = torch.randn(1, 576, 8, generator=torch.Generator().manual_seed(0))
    u = torch.fft.fftfreq(24, 1 / 24).double()
    for cutoff in (0.1, 0.5):
        gain = 1 - torch.exp(-(u[:, None] ** 2 + u**2) / (2 * (12 * cutoff) ** 2))
        image = states[0].double().view(24, 24, 8)
        filtered = torch.fft.ifft2(torch.fft.fft2(image, dim=(0, 1)) * gain[..., None], dim=(0, 1))
        expected = filtered.abs().mean(-1).flatten().float()
        torch.testing.assert_close(high_pass(states, frames, places, sizes, cutoff, 576)[0], expected)


def test_parts_padding_and_order() -> None:
    """In parts as at once; tokens off the grid count nowhere, whatever they hold; the order of tokens is free."""
    frames, places, sizes = coordinates([(4, 3)])
    states = torch.randn(1, 12, 4, generator=torch.Generator().manual_seed(1))
    whole = high_pass(states, frames, places, sizes, 0.4, 12)
    torch.testing.assert_close(high_pass(states, frames, places, sizes, 0.4, 12, chunk=30), whole)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(2))
    shuffled = high_pass(states[:, order], frames[:, order], places[:, order], sizes[:, order], 0.4, 12)
    torch.testing.assert_close(shuffled, whole[:, order])
    wide = [torch.cat([values, torch.full_like(values[:, :3], -1)], 1) for values in (frames, places, sizes)]
    padded = high_pass(torch.cat([states, torch.full((1, 3, 4), torch.nan)], 1), *wide, 0.4, 15)
    torch.testing.assert_close(padded[:, :12], whole)
    assert not padded[:, 12:].any()


def test_a_flat_frame_has_no_high_frequencies() -> None:
    frames, places, sizes = coordinates([(5, 6)])
    assert high_pass(torch.ones(1, 30, 2), frames, places, sizes, 0.2, 30).max() < 1e-6


def test_nothing_waits_for_the_device() -> None:
    """The meta device has no values: whatever asks for one raises."""
    numbers = torch.empty(2, 12, dtype=torch.long, device="meta")
    pairs = torch.empty(2, 12, 2, dtype=torch.long, device="meta")
    assert high_pass(torch.empty(2, 12, 4, device="meta"), numbers, pairs, pairs, 0.1, 12).shape == (2, 12)
