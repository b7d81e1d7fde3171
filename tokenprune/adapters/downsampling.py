"""How a family's pictures are made smaller, so that they become fewer visual tokens."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn

#: Towers that fit their position embeddings to any size of picture without being asked.
ANY_SIZE = ("dinov2",)


@dataclass(frozen=True)
class Downsampling:
    """How the pictures of a family become fewer visual tokens.

    Attributes:
        side: Pixels on a side of the square that becomes one token.
        tower: None where the processor takes pictures of any size: then the picture is made smaller before it. Where
            the processor makes all pictures one size, the tower: it then gets the processor's picture made smaller,
            with its position embeddings interpolated.
    """

    side: int
    tower: nn.Module | None = None

    @contextmanager
    def running(self) -> Iterator[None]:
        """Inside the block the tower takes pictures of any size. On exit it is as it was before."""
        if self.tower is None or not _has_switch(self.tower):
            yield
            return

        def interpolated(
            _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> tuple[tuple[Any, ...], dict[str, Any]]:
            return args, {**kwargs, "interpolate_pos_encoding": True}

        hook = self.tower.register_forward_pre_hook(interpolated, with_kwargs=True)
        try:
            yield
        finally:
            hook.remove()


def fixed_size(tower: nn.Module | None, vision: Any) -> Downsampling | None:
    """The down-sampling of a family whose processor makes all pictures one size.

    Args:
        tower: The vision tower.
        vision: Its config.

    Returns:
        None where the tower cannot interpolate its position embeddings.
    """
    if tower is None or not (_has_switch(tower) or getattr(vision, "model_type", None) in ANY_SIZE):
        return None
    return Downsampling(int(vision.patch_size), tower)


def _has_switch(tower: nn.Module) -> bool:
    """Whether a tower interpolates its position embeddings when it is told to, as CLIP and SigLIP do."""
    return "interpolate_pos_encoding" in inspect.signature(tower.forward).parameters
