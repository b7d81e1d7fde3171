"""Which methods can be served: those that choose from the features of one picture or video, before the decoder."""

from __future__ import annotations

from collections.abc import Mapping

from tokenprune import Method
from tokenprune.authoring import ConfigError, needs_beyond_features


def check_servable(name: str, method: Method) -> None:
    """Refuse a method that needs more than the features of one picture or video.

    Raises:
        ConfigError: It does; the message says what.
    """
    reason = why_not(method)
    if reason is not None:
        raise ConfigError(f"method {name!r} cannot be served: it {reason}", "`tokenprune-vllm` lists those that can")


def why_not(method: Method) -> str | None:
    """Why a method cannot be served, as the end of a sentence; None if it can.

    vLLM keeps the features of an item for all prompts that show it, has one sequence for all layers, and asks for
    placeholders before the vision tower has run. A number of tokens is one per item here, so a prompt's items share
    nothing; a method that compares them is served for prompts of one video, see :func:`check_items`.
    """
    return " and ".join(needs_beyond_features(method, tower=True, alone=True)) or None


def check_items(method: Method, items: Mapping[str, int]) -> None:
    """Refuse a method that compares the frames of a prompt where a prompt holds other things than one video.

    Args:
        method: A method that can be served.
        items: Pictures and videos of the prompt, by their kind.

    Raises:
        ConfigError: The prompt holds several items, or pictures.
    """
    shown = {kind: count for kind, count in items.items() if count}
    if method.pruner.across_images and shown not in ({}, {"video": 1}):
        given = " and ".join(f"{count} {kind}{'s' if count > 1 else ''}" for kind, count in shown.items())
        raise ConfigError(
            f"the method compares all frames of a prompt, and the prompt has {given}",
            "give one video and no picture, or use another method for this request",
        )
