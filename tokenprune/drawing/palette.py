"""Styles of methods: the same colour, marker and dash in every chart."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from hashlib import blake2b

from tokenprune.core.references import DOWNSAMPLED, ORACLE, UNPRUNED, is_random

#: Colours that readers with colour-vision deficiencies can tell apart, on white and on dark paper: six of Okabe and
#: Ito, and two more, which stay apart from these and from each other (tests/drawing/test_palette.py simulates it).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#6644EE", "#BB3333")
#: Markers as SVG paths in the square from -1 to 1: circle, square, triangle, diamond, triangle, plus, cross, star.
MARKERS = (
    "M-.85,0a.85,.85,0,1,0,1.7,0a.85,.85,0,1,0,-1.7,0Z",
    "M-.75,-.75H.75V.75H-.75Z",
    "M0,-.9L.95,.75H-.95Z",
    "M0,-1L1,0L0,1L-1,0Z",
    "M0,.9L.95,-.75H-.95Z",
    "M-.36,-.95H.36V-.36H.95V.36H.36V.95H-.36V.36H-.95V-.36H-.36Z",
    "M-.9,-.45L-.45,-.9L0,-.45L.45,-.9L.9,-.45L.45,0L.9,.45L.45,.9L0,.45L-.45,.9L-.9,.45L-.45,0Z",
    "M0,-1.2L.31,-.4L1.16,-.37L.5,.17L.72,1L0,.53L-.72,1L-.5,.17L-1.16,-.37L-.31,-.4Z",
)
#: The marker of the unpruned model, whose chart is a band.
BAR = "M-.9,-.2H.9V.2H-.9Z"
#: The marker of the upper bound.
STAR = MARKERS[-1]
#: The marker of smaller pictures.
DIAMOND = MARKERS[3]
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
    "entropy-tower",
    "entropy-tower-reference",
    "norm-tower-large",
    "energy-tower-large",
    "mmr",
    "otprune",
    "svd-prune",
    "apet",
    "prunesid",
    "flashvid",
    "v2drop",
    "priortr",
    "clse",
)


@dataclass(frozen=True)
class MethodStyle:
    """The style of a method.

    Attributes:
        colour: As ``#rrggbb``.
        marker: An SVG path.
        dash: Lengths of dashes and gaps in line widths; empty for a solid line.
    """

    colour: str
    marker: str
    dash: tuple[float, ...]


@dataclass(frozen=True)
class StyleAlias:
    """A name that is drawn in the style of a method.

    Attributes:
        name: The name.
        method: The method.
        number: Number of its results among several; it decides the dashes.
    """

    name: str
    method: str
    number: int = 0


def styles(names: Iterable[str], aliases: Iterable[StyleAlias] = ()) -> dict[str, MethodStyle]:
    """The style of every name in charts and tables.

    Args:
        names: Names of methods, or of aliases.
        aliases: The names that are no methods.
    """
    known, names = {alias.name: alias for alias in aliases}, sorted(set(names))
    own = _method_styles(known[name].method if name in known else name for name in names)
    return {
        name: replace(own[known[name].method], dash=DASHES[known[name].number % len(DASHES)])
        if name in known
        else own[name]
        for name in names
    }


def _method_styles(methods: Iterable[str]) -> dict[str, MethodStyle]:
    """The style of every method, by its name in tables.

    A named method always has the same style. Any other method has a style that follows from its name; only where two
    of one plot would share it, the later one in alphabetical order takes the next that is free. What methods are
    compared with is grey: the unpruned model is solid, the upper bound ``oracle`` dashed, random choices dotted,
    smaller pictures both.

    """
    found: dict[str, MethodStyle] = {}
    taken: set[int] = set()
    for name in sorted(set(methods), key=lambda name: (name not in PLACES, name)):
        if name == UNPRUNED:
            found[name] = MethodStyle(GREY, BAR, ())
        elif name == ORACLE:
            found[name] = MethodStyle(GREY, STAR, DASHES[1])
        elif name == DOWNSAMPLED:
            found[name] = MethodStyle(GREY, DIAMOND, DASHES[3])
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
