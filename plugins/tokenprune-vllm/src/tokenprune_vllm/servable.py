"""Which methods can be served: those that choose from the features of one picture, before the language model."""

from __future__ import annotations

from tokenprune import Method, load_method
from tokenprune.authoring import ConfigError, needs_beyond_features

#: A budget about which there is nothing to say.
PER_PICTURE = load_method("random", keep_ratio=0.5).budget


def check_servable(name: str, method: Method) -> None:
    """Refuse a method that needs more than the features of one picture.

    Raises:
        ConfigError: It does; the message says what.
    """
    reason = why_not(method)
    if reason is not None:
        raise ConfigError(f"method {name!r} cannot be served: it {reason}", "`tokenprune-vllm` lists those that can")


def why_not(method: Method) -> str | None:
    """Why a method cannot be served, as the end of a sentence; None if it can.

    vLLM keeps the features of a picture for all prompts that show it, and has one sequence for all layers. A number of
    tokens is one per picture here, so a prompt's pictures share nothing.
    """
    reasons = needs_beyond_features(method.model_copy(update={"budget": PER_PICTURE}), tower=True)
    own = needs_beyond_features(method, tower=True, alone=True)
    return " and ".join(dict.fromkeys([*reasons, *own])) or None
