"""Which methods can be served: those that choose from the features of one picture, before the language model."""

from __future__ import annotations

from tokenprune import Method
from tokenprune.errors import ConfigError

#: Signals that the features of one picture, and the vision tower that made them, can give.
FEATURES = frozenset({"hidden", "tower_value"})


def check_servable(name: str, method: Method) -> None:
    """Refuse a method that needs more than the features of one picture.

    Raises:
        ConfigError: It does; the message says what.
    """
    reason = why_not(method)
    if reason is not None:
        raise ConfigError(f"method {name!r} cannot be served: it {reason}", "see 'Serve with vLLM' for those that can")


def why_not(method: Method) -> str | None:
    """Why a method cannot be served, as the end of a sentence; None if it can."""
    layers = getattr(method.layers, "layers", None)
    if layers is None:
        return "looks for its layer on calibration samples; name the layer 0, or serve the tuned.yaml of a tune"
    if tuple(layers) != (0,):
        shown = ", ".join(map(str, layers))
        return f"prunes before layers {shown} of the language model, and vLLM has one sequence for all layers"
    pruner = method.pruner.at(0)
    more = sorted(pruner.needs - FEATURES)
    if more:
        return f"reads {', '.join(more)}, and vLLM keeps the features of a picture for all prompts"
    if pruner.shares_quota_itself:
        return "compares the pictures of a prompt, and vLLM keeps the features of each picture for all prompts"
    if method.budget.open_ended(0, 1) and pruner.adaptive:
        return "decides itself how many tokens are kept, and vLLM asks for the number before the vision tower runs"
    if method.cut_earlier_caches:
        return "cuts the caches of earlier layers"
    return None
