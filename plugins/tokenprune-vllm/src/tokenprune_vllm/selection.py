"""A method asked which features of one picture or video stay. The choice is tokenprune's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tokenprune import Method
from tokenprune.authoring import TokenPruneError, make_context


class Layers(Mapping[int, Any]):
    """Layers of the vision tower that are read when a method asks for them.

    Args:
        numbers: The declared layers.
        read: Reads one.
    """

    def __init__(self, numbers: frozenset[int], read: Callable[[int], Any]) -> None:
        self._numbers, self._read = numbers, read
        self._known: dict[int, Any] = {}

    def __getitem__(self, layer: int) -> Any:
        if layer not in self._numbers:
            raise KeyError(layer)
        if layer not in self._known:
            self._known[layer] = self._read(layer)
        return self._known[layer]

    def __contains__(self, layer: object) -> bool:
        return layer in self._numbers  # without reading it

    def __iter__(self) -> Iterator[int]:
        return iter(self._numbers)

    def __len__(self) -> int:
        return len(self._numbers)


def choose(
    method: Method,
    states: Tensor,
    sizes: Sequence[int],
    quotas: Sequence[int],
    grid: Tensor | None,
    tower: Callable[[int], Any],
    text_config: Any,
    seed: int,
) -> tuple[Tensor, Tensor | None]:
    """The features of one picture or video that stay.

    Args:
        method: A method that can be served.
        states: What enters the language model, ``[tokens, dim]``.
        sizes: Tokens of each image that the features are, in order: one picture or video is one image, but for families
            whose video is an image per frame.
        quotas: Tokens of each that stay; of a method that divides them itself, their sum does.
        grid: (frame, row, column) of each token, long ``[tokens, 3]``; None where the family has no grid.
        tower: Reads a layer of the vision tower for them; see
            :class:`tokenprune.signals.signals.TowerSignals`, with an axis of pictures of length 1 in front.
        text_config: The language model's config.
        seed: Random choices are seeded with it.

    Returns:
        The tokens that stay, bool ``[tokens]``; and new states of all tokens, if the method merges.

    Raises:
        TokenPruneError: A score is not finite, or the method kept another number.
    """
    pruner = method.pruner.at(0)
    number = None
    if len(sizes) > 1:
        number = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))[None].to(states.device)
    context = make_context(
        states[None],
        keep=[quotas],
        images=number,
        sizes=[sizes],
        grid=None if grid is None else grid[None].to(states.device),
        tower=Layers(pruner.vision_layers, tower),
        needs=pruner.needs,
        layer=0,
        num_layers=text_config.num_hidden_layers,
        num_heads=text_config.num_attention_heads,
        sample_ids=[seed],
    )
    chosen = pruner.select(context)
    for bad, error in context.checks:
        if bool(bad.any()):
            raise error(int(bad.int().argmax()))
    count, kept = int(chosen.keep.sum()), sum(quotas)
    if count != kept:
        raise TokenPruneError(f"{type(pruner).__name__} kept {count} of {len(states)} tokens, not {kept}", "report it")
    return chosen.keep[0], None if chosen.hidden is None else chosen.hidden[0]
