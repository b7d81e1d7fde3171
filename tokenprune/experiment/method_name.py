"""Names of methods that mean something by themselves."""

from __future__ import annotations


def is_random(method: str) -> bool:
    """Whether a method chooses tokens at random. The name decides: ``random`` or ``random-...``."""
    return method == "random" or method.startswith("random-")
