"""How a family's pictures are made smaller, so that they become fewer visual tokens."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Downsampling:
    """How the pictures of a family become fewer visual tokens.

    Attributes:
        side: Pixels on a side of the square that becomes one token, where the processor takes pictures of any size:
            the picture is then made smaller before it. None where the processor makes all pictures one size: it
            enlarges a smaller one again, and the features of that are averaged.
    """

    side: int | None
