"""The prompt of one prefill as the model got it: computed once, kept on the device."""

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from tokenprune.adapters.base import Adapter
from tokenprune.adapters.layout import VisualLayout
from tokenprune.errors import UnsupportedModelError
from tokenprune.ops.frames import frame_sizes, number_frames
from tokenprune.ops.rows import seen_columns, take


class PromptMap:
    """Where the tokens and images of a prompt are, before any stage.

    Args:
        adapter: The model's adapter.
        arguments: The arguments of the model's forward, by name.
        layout: Where the visual tokens are.
        images: The most images that a sample has.
        device: The device of the hidden states.
        past: Tokens of earlier turns.
    """

    def __init__(
        self,
        adapter: Adapter,
        arguments: Mapping[str, Any],
        layout: VisualLayout,
        images: int,
        device: torch.device,
        past: int = 0,
    ) -> None:
        self._adapter = adapter
        self._arguments = arguments
        self._layout = layout
        self._images, self._past = images, past
        self.visual = layout.mask.to(device)
        self.image = layout.groups.to(device)

    @cached_property
    def tokens(self) -> Tensor:
        """Tokens without padding, bool ``[batch, seq]``."""
        return real_tokens(self._arguments, self.visual, self._past)

    @cached_property
    def grid(self) -> Tensor:
        """(frame, row, column) of every token, long ``[batch, seq, 3]``; -1 for text and separators.

        Raises:
            UnsupportedModelError: The family's adapter knows no grid.
        """
        grid = self._adapter.grid(self._arguments, self._layout)
        if grid is None:
            raise UnsupportedModelError(
                f"the adapter of {self._adapter.name!r} knows no token grid",
                "use a method that needs none, or write an adapter that overrides grid()",
            )
        return grid.to(self.visual.device)

    @cached_property
    def frames(self) -> Tensor:
        """Number, rows and columns of every token's frame, long ``[batch, seq, 3]``; -1 for text and separators."""
        frame = self.grid[..., 0].masked_fill(self.image < 0, -1)
        numbers = number_frames(frame, self.image, self._images)
        return torch.cat([numbers[..., None], frame_sizes(numbers, self.grid)], -1)

    @cached_property
    def frame_numbers(self) -> list[Tensor]:
        """Frame of each visual token of each sample, long ``[tokens]`` on the host: a transfer, once per prompt."""
        numbers, visual = self.frames[..., 0].cpu(), self.visual.cpu()
        return [row[mask] for row, mask in zip(numbers, visual, strict=True)]


def real_tokens(arguments: Mapping[str, Any], visual: Tensor, past: int = 0) -> Tensor:
    """Tokens without padding, bool ``[batch, seq]``.

    Args:
        arguments: The arguments of the model's forward, by name.
        visual: The visual tokens, bool ``[batch, seq]``.
        past: Tokens of earlier turns, which the call's mask covers, too.
    """
    seen = seen_columns(arguments.get("attention_mask"))
    if seen is None:
        return torch.ones_like(visual)
    return seen[:, past : past + visual.shape[1]].expand_as(visual).to(visual.device)


def count_text(arguments: Mapping[str, Any], visual: Tensor, past: int = 0) -> list[int]:
    """Tokens per sample that are neither visual nor padding: a transfer to the host.

    Args:
        arguments: The arguments of the model's forward, by name.
        visual: The visual tokens, bool ``[batch, seq]``.
        past: Tokens of earlier turns.
    """
    counts: list[int] = (real_tokens(arguments, visual, past) & ~visual).sum(1).tolist()
    return counts


def at_positions(values: Tensor, positions: Tensor, real: Tensor) -> Tensor:
    """Values of the whole prompt at some positions.

    Args:
        values: ``[batch, seq, ...]`` with one more axis.
        positions: Long ``[batch, n_visual]``.
        real: Positions of tokens and not of padding, bool ``[batch, n_visual]``.

    Returns:
        ``[batch, n_visual, ...]``, -1 where padding.
    """
    return take(values.to(positions.device), positions, 1, 0).masked_fill(~real[:, :, None], -1)
