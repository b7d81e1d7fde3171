"""How a family's pictures are made smaller, so that they become fewer visual tokens."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

from torch import nn

#: The argument by which towers such as CLIP and SigLIP are told to interpolate their position embeddings.
SWITCH = "interpolate_pos_encoding"
#: Towers that fit their position embeddings to any size of picture without being told.
ANY_SIZE = ("dinov2",)


@dataclass(frozen=True)
class Downsampling:
    """How the pictures of a family become fewer visual tokens.

    Attributes:
        side: Pixels on a side of the square that becomes one token.
        tower: None where the processor takes pictures of any size: then the picture is made smaller before it. Where
            the processor makes all pictures one size, the tower: it then gets the processor's picture made smaller,
            with its position embeddings interpolated.
        told: Whether the tower must be told to interpolate them, by the argument :data:`SWITCH`.
    """

    side: int
    tower: nn.Module | None = None
    told: bool = False


def fixed_size(tower: nn.Module | None, vision: Any) -> Downsampling | None:
    """The down-sampling of a family whose processor makes all pictures one size.

    Args:
        tower: The vision tower.
        vision: Its config.

    Returns:
        None where the tower cannot interpolate its position embeddings.
    """
    if tower is None:
        return None
    told = SWITCH in inspect.signature(tower.forward).parameters
    if not told and getattr(vision, "model_type", None) not in ANY_SIZE:
        return None
    return Downsampling(int(vision.patch_size), tower, told)
