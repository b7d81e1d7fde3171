"""Tells logits of a distribution from worthless ones."""

from torch import Tensor


def is_distribution(logits: Tensor) -> Tensor:
    """Whether each row of logits tells likely tokens from others. Nothing waits for the device.

    Minus infinity rules a token out, and may stand anywhere but everywhere. NaN or plus infinity anywhere make the row
    worthless, although its ``argmax`` is a token like any other.

    Args:
        logits: Logits or log-probabilities, floating ``[..., vocabulary]``.

    Returns:
        Bool ``[...]``.
    """
    return logits.amax(-1).isfinite()  # NaN is the largest of a row that holds one
