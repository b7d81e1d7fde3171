"""Batches laid out image by image, so that a greedy method processes all images in one loop."""

from collections.abc import Callable, Sequence
from functools import cached_property

import torch
from torch import Tensor

from tokenprune.ops.gather import rows_at


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
        whole: Whether every sample is one image without padding. Then both layouts are the same.
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
        self.whole: bool = self.host_sizes == [[groups.shape[1]]] * len(self.host_sizes)

    def _padded(self, rows: list[list[int]]) -> list[list[int]]:
        """``most`` numbers per sample."""
        return [row + [0] * (self.most - len(row)) for row in rows]

    @property
    def host_counts(self) -> list[tuple[int, int]]:
        """Tokens and quota of each image, host integers, in the order of ``sizes`` and ``quotas``."""
        rows = zip(self._padded(self.host_sizes), self._padded(self.host_quotas), strict=True)
        return [pair for sizes, quotas in rows for pair in zip(sizes, quotas, strict=True)]

    @cached_property
    def quotas_by_sample(self) -> Tensor:
        """Tokens to keep per sample and image, long ``[batch, most]``; missing images have 0."""
        return torch.tensor(self._padded(self.host_quotas), device=self.groups.device)

    @cached_property
    def quotas(self) -> Tensor:
        """Tokens to keep of each image, long ``[images]``."""
        return self.quotas_by_sample.flatten()

    def counts(self, of_quota: Callable[[int], int]) -> tuple[Tensor, int]:
        """A count for each image that follows from its quota. It must not fall with rising quotas.

        It is computed on the host: rounding in double precision must not depend on the device.

        Args:
            of_quota: Gives the count of a quota.

        Returns:
            Long ``[images]``, and the largest of them, a host integer.
        """
        table = [of_quota(quota) for quota in range(self.max_quota + 1)]
        return torch.tensor(table, device=self.groups.device)[self.quotas], table[-1]

    @cached_property
    def sizes(self) -> Tensor:
        """Tokens of each image, long ``[images]``."""
        return torch.tensor(self._padded(self.host_sizes), device=self.groups.device).flatten()

    @cached_property
    def valid(self) -> Tensor:
        """Entries of an image that are tokens and not padding, bool ``[images, max_size]``."""
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

    @cached_property
    def _inverse(self) -> Tensor:
        """Entry of each token among all entries of its sample, long ``[batch, n_visual]`` (0 for padding)."""
        batch, width = self.groups.shape
        index = self.index.masked_fill(~self.valid, width).view(batch, self.most * self.max_size)
        inverse = index.new_zeros(batch, width + 1)  # one extra column takes the padding
        return inverse.scatter(1, index, torch.arange(index.shape[1], device=index.device).expand_as(index))[:, :width]

    def split(self, states: Tensor) -> Tensor:
        """``[batch, n_visual, ...]`` as ``[images, max_size, ...]``; padding repeats the sample's first token.

        Not a copy if ``whole``.
        """
        if self.whole:
            return states
        index = self.index.view(len(states), self.most * self.max_size)
        return rows_at(states, index).view(*self.index.shape, *states.shape[2:])

    def join_places(self, places: Tensor) -> Tensor:
        """Places within an image as indices on the visual axis.

        Args:
            places: An entry of the same image for each entry, long ``[images, max_size]``; -1 for none.

        Returns:
            Long ``[batch, n_visual]``; -1 for none. Padding of a sample is 0.
        """
        axis = places if self.whole else self.index.gather(1, places.clamp(min=0))
        return self.join(axis.masked_fill(places < 0, -1))

    def join(self, states: Tensor) -> Tensor:
        """``[images, max_size, ...]`` back as ``[batch, n_visual, ...]``; padding of a sample is 0 (False).

        Not a copy if ``whole``.
        """
        if self.whole:
            return states
        entries = states.reshape(len(self.groups), self.most * self.max_size, *states.shape[2:])
        padding = (self.groups < 0).view(*self.groups.shape, *[1] * (states.dim() - 2))
        return rows_at(entries, self._inverse).masked_fill(padding, 0)
