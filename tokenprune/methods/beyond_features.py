"""What a method needs beside the features of one image, for those who ask it before the language model runs."""

from collections.abc import Collection, Iterable, Iterator

from tokenprune.config import Method
from tokenprune.core import plugins
from tokenprune.errors import TokenPruneError
from tokenprune.selectors.base import LayerSelector, SelectorContext
from tokenprune.signals.signals import check_needs

#: Signals that exist where there are the features of one image or video, its grid, and a number of its own.
FEATURE_SIGNALS = frozenset({"grid", "hidden", "sample_ids"})

_DEEP = 1000  # layers of a model: which one it is does not matter, as only layer 0 is asked for


def needs_beyond_features(
    method: Method, *, given: Collection[str] = FEATURE_SIGNALS, tower: bool = False, alone: bool = False
) -> tuple[str, ...]:
    """Say why a method cannot choose from the features of one image or video alone, before the language model.

    A serving engine that shortens its prompts before the language model runs asks a method image by image, through
    :func:`tokenprune.testing.make_context`, with ``layer=0``, the decoder's ``num_heads`` and without any text. If this
    function has nothing to say, the method chooses then what it chooses in a prefill, for the same number of tokens and
    the same number of the sample. The method's declarations are read; nothing runs.

    Three things are the caller's. The number of tokens to keep is ``budget.keep(tokens, Schedule((0,), layers))`` of an
    image alone; in a prompt of several images a prefill rounds a share once for all of them, so that it may keep a
    token more or less of an image. Random choices are those for the first image of a prompt. And what a component found
    wrong is in ``ctx.checks`` when it has chosen: a prefill raises it at its end.

    Args:
        method: The method.
        given: Signals that the caller hands over; any of :data:`tokenprune.signals.signals.SIGNALS`.
        tower: Whether the caller also hands over the layers of the vision tower that ``method.pruner.vision_layers``
            names.
        alone: Whether a prompt holds at most one image or video. Then nothing is compared with others, and a number of
            tokens for a prompt is one for the image.

    Returns:
        The reasons, each a part of a sentence that tells what the method does; none if the method can choose.

    Raises:
        ConfigError: ``given`` contains an unknown signal.
    """
    check_needs(frozenset(given), "needs_beyond_features")
    return tuple(_reasons(method, frozenset(given), tower, alone))


def _reasons(method: Method, given: frozenset[str], tower: bool, alone: bool) -> Iterator[str]:
    pruner, budget = method.pruner, method.budget
    elsewhere = _layers(method.layers)
    if elsewhere:
        yield elsewhere
    missing = pruner.needs - given - frozenset({"tower_value"} if tower else ())
    if missing:
        yield f"reads {_listed(map(repr, sorted(missing)))}"
    layers = sorted(pruner.vision_layers)
    if layers and not tower:
        yield f"reads layer{'s' if len(layers) > 1 else ''} {_listed(map(str, layers))} of the vision tower"
    if pruner.across_images and not alone:
        yield "compares the images of a prompt"
    name = plugins.registry("budgets").name_of(type(budget))
    if budget.open_ended(0, 1):
        yield f"decides by itself how many tokens survive (budget {name})"
    if budget.reads_cost:
        yield f"keeps a number of tokens that depends on the text (budget {name})"
    if budget.largest_count is not None and not alone:
        yield f"keeps a number of tokens that the images of a prompt share (budget {name})"


def _layers(selector: LayerSelector) -> str:
    """Why the layers are others than layer 0 alone; empty if they are not."""
    name = plugins.registry("selectors").name_of(type(selector))
    try:
        known = selector.known_layers(SelectorContext("", _DEEP))
    except TokenPruneError as error:
        return f"has layers that cannot be used ({name}: {error.what})"
    if known is None:
        return f"searches for its layers ({name})"
    return "" if known == (0,) else f"prunes inside the language model ({selector!r})"


def _listed(words: Iterable[str]) -> str:
    *others, last = words
    return f"{', '.join(others)} and {last}" if others else last
