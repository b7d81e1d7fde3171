"""Numbered patches: paints single spots of pictures, and sees which visual tokens of a real model change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

GREY, PAINT = 110, (255, 40, 0)

Picture = NDArray[np.uint8]
Spot = tuple[int, tuple[float, float, float, float]]
"""Number of the picture, and left, top, right and bottom of what is painted, as shares of it."""


def plain(width: int, height: int) -> Picture:
    """A grey picture, ``[height, width, 3]``."""
    return np.full((height, width, 3), GREY, dtype=np.uint8)


def painted(pictures: Sequence[Picture], spot: Spot) -> list[Picture]:
    """Copies of the pictures, with one spot of another colour."""
    number, (left, top, right, bottom) = spot
    copies = [picture.copy() for picture in pictures]
    height, width = copies[number].shape[:2]
    rows, columns = slice(round(top * height), round(bottom * height)), slice(round(left * width), round(right * width))
    assert copies[number][rows, columns].size, f"nothing painted at {spot}"
    copies[number][rows, columns] = PAINT
    return copies


@torch.no_grad()
def make_local(model: Any) -> None:
    """Make every layer of the vision towers return its input.

    A layer adds the outputs of its attention and of its MLP to its input. With all of its weights at zero, both are
    zero. Position embeddings, poolings, projectors and everything that rearranges patches stay.
    """
    decoder = model.get_decoder()
    inner = {id(module) for module in decoder.modules()}
    stacks = [
        module
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList)
        and id(module) not in inner
        and name.rsplit(".", 1)[-1] in ("layers", "layer", "blocks")
    ]
    assert stacks
    for stack in stacks:
        for parameter in stack.parameters():
            parameter.zero_()


class EnoughError(Exception):
    """The decoder has been called; nothing after that matters."""


@dataclass(frozen=True)
class Features:
    """What the decoder is given.

    Attributes:
        states: The embeddings of the visual tokens of every sample, float32 ``[batch, tokens, dim]``.
    """

    states: Tensor

    def changes(self) -> Tensor:
        """How much each token of each sample differs from the first sample's, float32 ``[batch - 1, tokens]``."""
        changes: Tensor = (self.states[1:] - self.states[:1]).norm(dim=-1)
        return changes


@torch.no_grad()
def visual_states(model: Any, inputs: dict[str, Tensor], visual_ids: Sequence[int]) -> Features:
    """Run a model up to its decoder.

    Args:
        model: The model.
        inputs: The processor's batch; all samples have equally many visual tokens.
        visual_ids: Ids of the placeholders of visual tokens.
    """
    seen: list[Tensor] = []

    def stop(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        seen.append(kwargs["inputs_embeds"])
        raise EnoughError

    handle = model.get_decoder().register_forward_pre_hook(stop, with_kwargs=True)
    try:
        model(**inputs)
    except EnoughError:
        pass
    finally:
        handle.remove()
    (states,) = seen
    mask = torch.isin(inputs["input_ids"], torch.tensor(visual_ids))
    return Features(torch.stack([row[where] for row, where in zip(states, mask, strict=True)]).float())
