"""Batches laid out image by image, so that a greedy method processes all images in one loop."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor


class PerImage:
    """The visual tokens of a batch, image by image.

    ``images`` counts the images and videos of all samples; every sample has as many as the sample with most, the
    missing ones are empty. Images are padded to the largest. All counts come from host integers: nothing here waits
    for the device.

    Args:
        groups: Image (or video) of each visual token, long ``[batch, n_visual]``, -1 for padding.
        sizes: Tokens of each image, per sample.
        quotas: Tokens to keep of each image, per sample.

    Attributes:
        groups: As given.
        host_sizes: The sizes, host integers: loops that need a count must not wait for one.
        host_quotas: The quotas, host integers.
        most: The most images that a sample has.
        max_size: Tokens of the largest image.
        max_quota: Largest quota of an image.
    """

    def __init__(self, groups: Tensor, sizes: Sequence[Sequence[int]], quotas: Sequence[Sequence[int]]) -> None:
        self.groups = groups
        self.host_sizes = [list(row) for row in sizes]
        self.host_quotas = [list(row) for row in quotas]
        self.most = max(map(len, sizes))
        self.max_size: int = max((max(row, default=0) for row in sizes), default=0)
        self.max_quota: int = max((max(row, default=0) for row in quotas), default=0)

    def _padded(self, rows: list[list[int]]) -> Tensor:
        """Long ``[batch, most]`` on the device."""
        return torch.tensor([row + [0] * (self.most - len(row)) for row in rows], device=self.groups.device)

    @cached_property
    def quotas_by_sample(self) -> Tensor:
        """Tokens to keep per sample and image, long ``[batch, most]``; missing images have 0."""
        return self._padded(self.host_quotas)

    @cached_property
    def quotas(self) -> Tensor:
        """Tokens to keep of each image, long ``[images]``."""
        return self.quotas_by_sample.flatten()

    @cached_property
    def sizes(self) -> Tensor:
        """Tokens of each image, long ``[images]``."""
        return self._padded(self.host_sizes).flatten()

    @cached_property
    def valid(self) -> Tensor:
        """Which entries of an image are tokens, bool ``[images, max_size]``."""
        return torch.arange(self.max_size, device=self.groups.device) < self.sizes[:, None]

    @cached_property
    def index(self) -> Tensor:
        """Index of each entry on the visual axis of its sample, long ``[images, max_size]`` (0 for padding)."""
        batch = self.groups.shape[0]
        padding_last = self.groups.masked_fill(self.groups < 0, torch.iinfo(torch.long).max)
        order = padding_last.argsort(dim=1, stable=True)
        sizes = self.sizes.view(batch, -1)
        start = (sizes.cumsum(1) - sizes).flatten()[:, None]
        place = (start + torch.arange(self.max_size, device=start.device)).clamp(max=order.shape[1] - 1)
        index = order.repeat_interleave(sizes.shape[1], dim=0).gather(1, place)
        return index.masked_fill(~self.valid, 0)

    def split(self, states: Tensor) -> Tensor:
        """``[batch, n_visual, ...]`` as ``[images, max_size, ...]``; padding repeats the sample's first token."""
        repeated = states.repeat_interleave(self.most, dim=0)
        index = self.index.view(*self.index.shape, *[1] * (states.dim() - 2))
        return repeated.gather(1, index.expand(-1, -1, *states.shape[2:]))

    def join(self, states: Tensor) -> Tensor:
        """``[images, max_size, ...]`` back as ``[batch, n_visual, ...]``; padding of a sample is 0 (False)."""
        batch, width = self.groups.shape
        flat = states.new_zeros(batch, width + 1, *states.shape[2:])  # one extra column takes the padding
        index = self.index.masked_fill(~self.valid, width).view(batch, -1, *[1] * (states.dim() - 2))
        values = states.reshape(batch, -1, *states.shape[2:])
        return flat.scatter(1, index.expand(-1, -1, *states.shape[2:]), values)[:, :width]
