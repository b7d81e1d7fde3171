"""Every image of every sample as a problem of its own: greedy methods then are one loop for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor


class Groups:
    """The visual tokens of a batch, image by image.

    A *problem* is one image (or video) of one sample; problems are padded to the largest. Nothing here waits for the
    device: all counts are host integers.

    Args:
        groups: Image of each visual token, long ``[batch, n_visual]``, -1 for padding.
        sizes: Tokens of each image, per sample.
        quotas: Tokens to keep of each image, per sample.
    """

    def __init__(self, groups: Tensor, sizes: Sequence[Sequence[int]], quotas: Sequence[Sequence[int]]) -> None:
        self._groups = groups
        most = max(map(len, sizes))
        self._sizes = [[*row, *[0] * (most - len(row))] for row in sizes]
        self._quotas = [[*row, *[0] * (most - len(row))] for row in quotas]
        self.size: int = max(max(row) for row in self._sizes)
        self.steps: int = max(max(row) for row in self._quotas)

    @cached_property
    def quotas(self) -> Tensor:
        """Tokens to keep of each problem, long ``[problems]``."""
        return torch.tensor(self._quotas, device=self._groups.device).flatten()

    @cached_property
    def sizes(self) -> Tensor:
        """Tokens of each problem, long ``[problems]``."""
        return torch.tensor(self._sizes, device=self._groups.device).flatten()

    @cached_property
    def valid(self) -> Tensor:
        """Which entries of a problem are tokens, bool ``[problems, size]``."""
        return torch.arange(self.size, device=self._groups.device) < self.sizes[:, None]

    @cached_property
    def index(self) -> Tensor:
        """Place of each entry on the visual axis of its sample, long ``[problems, size]`` (0 where padding)."""
        batch = self._groups.shape[0]
        last = self._groups.masked_fill(self._groups < 0, torch.iinfo(torch.long).max)
        order = last.argsort(dim=1, stable=True)
        sizes = self.sizes.view(batch, -1)
        start = (sizes.cumsum(1) - sizes).flatten()[:, None]
        place = (start + torch.arange(self.size, device=start.device)).clamp(max=order.shape[1] - 1)
        found = order.repeat_interleave(sizes.shape[1], dim=0).gather(1, place)
        return found.masked_fill(~self.valid, 0)

    def split(self, states: Tensor) -> Tensor:
        """``[batch, n_visual, ...]`` as ``[problems, size, ...]``; padded entries repeat the sample's first token."""
        spread = states.repeat_interleave(len(self._sizes[0]), dim=0)
        index = self.index.view(*self.index.shape, *[1] * (states.dim() - 2))
        return spread.gather(1, index.expand(-1, -1, *states.shape[2:]))

    def join(self, states: Tensor) -> Tensor:
        """``[problems, size, ...]`` back on the visual axis; entries that are padding of a sample are 0 (False)."""
        batch, width = self._groups.shape
        flat = states.new_zeros(batch, width + 1, *states.shape[2:])  # one place more takes the padding
        index = self.index.masked_fill(~self.valid, width).view(batch, -1, *[1] * (states.dim() - 2))
        values = states.reshape(batch, -1, *states.shape[2:])
        return flat.scatter(1, index.expand(-1, -1, *states.shape[2:]), values)[:, :width]
