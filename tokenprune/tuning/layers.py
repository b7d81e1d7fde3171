"""Layers worth trying: a method's own, those round the collapse of the entropy, and fixed shares of the depth."""

from collections.abc import Iterable, Sequence

from tokenprune.adapters.base import Adapter
from tokenprune.config import Method
from tokenprune.errors import LayerError
from tokenprune.selectors.base import SelectorContext
from tokenprune.selectors.entropy_profile import EntropyProfile, detect_collapse
from tokenprune.selectors.plateau import find_plateau

#: Shares of the decoder's depth at which a method with one stage is tried.
SHARES = (1 / 8, 1 / 4)


def own_layers(method: Method, adapter: Adapter, curves: EntropyProfile | None) -> tuple[int, ...] | None:
    """The layers that a method's selector chooses without running the model.

    Args:
        method: The method.
        adapter: The model's adapter.
        curves: The model's entropy curves, if they are known.

    Returns:
        The layers; None if the selector has to search, or names layers that the model does not have.
    """
    measured = None if curves is None else lambda: curves
    try:
        known = SelectorContext(
            adapter.name, adapter.num_layers, measure_entropy=measured, architecture=adapter.architecture
        )  # without the tower: a way before layer 0 has a pruner of its own
        return method.layers.select(known).layers
    except LayerError:
        return None


def single_layers(own: int | None, num_layers: int, curves: EntropyProfile | None) -> list[tuple[int, ...]]:
    """Layers for a method with one stage, its own first.

    A method whose own layer is 0 acts on the input of the language model, and stays there. Any other is tried at its
    own layer, at layer 1, at the entropy collapse layer, at the layer behind the collapsed one (where the states
    that are observed have collapsed), and at the :data:`SHARES` of the depth.

    Args:
        own: The method's own layer; None if it is not known.
        num_layers: Decoder layers.
        curves: Entropy curves, if they are known.
    """
    if own == 0:
        return [(0,)]
    wanted = [own, 1]
    if curves is not None:
        collapsed = find_plateau(curves).first
        wanted += [detect_collapse(curves).layer, None if collapsed is None else collapsed + 1]
    wanted += [int(share * num_layers + 0.5) for share in SHARES]
    return [(layer,) for layer in _once(wanted) if 1 <= layer < num_layers]


def schedules(own: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Schedules for a method with several stages: its own, and the same pulled forward by half.

    Every layer is halved and rounded down; layers that fall together move on to the next free one. A first stage at
    layer 1 or later does not move before layer 1, where states of an earlier layer exist.
    """
    pulled: list[int] = []
    for layer in own:
        lowest = pulled[-1] + 1 if pulled else min(own[0], 1)
        pulled.append(max(layer // 2, lowest))
    return list(dict.fromkeys([own, tuple(pulled)]))


def _once(layers: Iterable[int | None]) -> list[int]:
    return list(dict.fromkeys(layer for layer in layers if layer is not None))


def layer_words(layers: Sequence[int]) -> str:
    """Layers in words: ``layer 4``, ``layers 1, 2, 3``."""
    return f"layer{'s' if len(layers) > 1 else ''} {', '.join(map(str, layers))}"
