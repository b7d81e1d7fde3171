"""How a method is drawn: the same colour, marker and dash in every plot."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b

from tokenprune.core.references import ORACLE, UNPRUNED, is_random

#: Colours that readers with colour-vision deficiencies can tell apart, on white and on dark paper: six of Okabe and
#: Ito, and two more, which stay apart from these and from each other (tests/test_palette.py simulates it).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#6644EE", "#BB3333")
#: Markers by their names in matplotlib.
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
#: Lengths of dashes and gaps, in line widths; empty for a solid line.
DASHES: tuple[tuple[float, ...], ...] = ((), (4, 2), (1, 1.5), (6, 2, 1, 2))
#: What is drawn in grey: what methods are compared with, and no method itself.
GREY = "#7F7F7F"

#: Methods with a place of their own. Neighbours differ in colour; eight places on the marker changes, too.
PLACES = (
    "entropyprune",
    "fastv",
    "visionzip",
    "pyramiddrop",
    "sparsevlm",
    "divprune",
    "dart",
    "vispruner",
    "entropyprune-paper",
    "hiprune",
    "scope",
    "holov",
    "cdpruner",
    "vscan",
    "tome",
    "vision-attention",
    "entropyprune-reference",
    "dycoke",
    "framefusion",
    "vidcom2",
    "evs",
    "vtw",
    "tuned",
    "norm-hidden-large",
    "norm-hidden-small",
    "norm-key-large",
    "norm-key-small",
    "norm-query-large",
    "norm-query-small",
)


@dataclass(frozen=True)
class MethodStyle:
    """How a method is drawn.

    Attributes:
        colour: As ``#rrggbb``.
        marker: A marker's name in matplotlib.
        dash: Lengths of dashes and gaps in line widths; empty for a solid line.
    """

    colour: str
    marker: str
    dash: tuple[float, ...]


def styles(methods: Iterable[str]) -> dict[str, MethodStyle]:
    """The style of every method, by its name in tables.

    A named method always has the same style. Any other method has a style that follows from its name; only where two
    of one plot would share it, the later one in alphabetical order takes the next that is free. What methods are
    compared with is grey: the unpruned model is solid, the upper bound ``oracle`` dashed, random choices dotted.

    Args:
        methods: Names in tables.
    """
    found: dict[str, MethodStyle] = {}
    taken: set[int] = set()
    for name in sorted(set(methods), key=lambda name: (name not in PLACES, name)):
        if name == UNPRUNED:
            found[name] = MethodStyle(GREY, "", ())
        elif name == ORACLE:
            found[name] = MethodStyle(GREY, "*", DASHES[1])
        elif is_random(name):
            count = sum(style.dash == DASHES[2] and style.colour == GREY for style in found.values())
            found[name] = MethodStyle(GREY, MARKERS[count % len(MARKERS)], DASHES[2])
        else:
            place = PLACES.index(name) if name in PLACES else _place(name, taken)
            taken.add(place)
            marker, dash = place // len(COLOURS), place // (len(COLOURS) * len(MARKERS))
            found[name] = MethodStyle(COLOURS[place % len(COLOURS)], MARKERS[marker % len(MARKERS)], DASHES[dash])
    return found


def _place(name: str, taken: set[int]) -> int:
    """A place behind those of the named methods."""
    count = len(COLOURS) * len(MARKERS) * len(DASHES)
    free = count - len(PLACES)
    start = int.from_bytes(blake2b(name.encode(), digest_size=4).digest()) % free
    order = (len(PLACES) + (start + step) % free for step in range(free))
    return next((place for place in order if place not in taken), len(PLACES) + start)
