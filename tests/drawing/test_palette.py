"""A method looks the same in every plot, and two of one plot never look the same."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations, pairwise

from tokenprune.drawing.palette import COLOURS, DASHES, GREY, PLACES, styles
from tokenprune.methods.named import method_names


def test_a_named_method_looks_the_same_beside_any_others() -> None:
    everything = styles([*PLACES, "mine", "random", "oracle", "unpruned"])
    for name in PLACES:
        assert styles([name, "zzz", "random"])[name] == everything[name]


def test_no_two_methods_of_a_plot_look_the_same() -> None:
    names = [*method_names(), *(f"my-method-{number}" for number in range(60)), "random-layer-2", "unpruned"]
    found = list(styles(names).values())
    assert len(set(found)) == len(found) == len(set(names))


def test_neighbours_in_the_table_differ_in_colour() -> None:
    found = styles(PLACES)
    for first, second in pairwise(PLACES):
        assert found[first].colour != found[second].colour


def test_what_methods_are_compared_with_is_grey() -> None:
    found = styles(["random", "random-layer-2", "oracle", "unpruned", "fastv", "randomised"])
    for name in ("random", "random-layer-2"):
        assert (found[name].colour, found[name].dash) == (GREY, DASHES[2])
    assert found["random"].marker != found["random-layer-2"].marker
    assert (found["oracle"].colour, found["oracle"].dash) == (GREY, DASHES[1])
    assert (found["unpruned"].colour, found["unpruned"].dash) == (GREY, ())
    assert GREY not in (found["fastv"].colour, found["randomised"].colour)


def test_the_order_of_the_names_does_not_matter() -> None:
    names = [f"method-{number}" for number in range(30)]
    assert list(styles(names).items()) == list(styles(reversed(names)).items())  # the bytes of a page follow it


#: Light as seen without defect, with protanopia, with deuteranopia (Vienot, Brettel and Mollon, 1999).
SEEN = (
    ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)),
    ((0.11238, 0.88762, 0.0), (0.11238, 0.88762, 0.0), (0.00401, -0.00401, 1.0)),
    ((0.29275, 0.70725, 0.0), (0.29275, 0.70725, 0.0), (-0.02234, 0.02234, 1.0)),
)
#: From linear red, green and blue to X, Y, Z, as shares of those of white.
XYZ = ((0.4339, 0.3762, 0.1899), (0.2126, 0.7152, 0.0722), (0.0177, 0.1095, 0.8728))


def times(matrix: Sequence[Sequence[float]], vector: Sequence[float]) -> list[float]:
    return [sum(a * b for a, b in zip(row, vector, strict=True)) for row in matrix]


def linear(colour: str) -> list[float]:
    """Red, green and blue as amounts of light."""
    parts = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    return [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]


def lab(light: Sequence[float]) -> list[float]:
    """CIE Lab: a distance of 2 is just noticeable side by side."""
    x, y, z = (value ** (1 / 3) if value > 0.008856 else 7.787 * value + 16 / 116 for value in times(XYZ, light))
    return [116 * y - 16, 500 * (x - y), 200 * (y - z)]


def distance(first: str, second: str) -> float:
    """How far two colours are apart for whoever sees the least difference."""
    return min(math.dist(*(lab(times(matrix, linear(colour))) for colour in (first, second))) for matrix in SEEN)


def test_colours_differ_for_readers_who_do_not_see_red_or_green() -> None:
    apart = {(first, second): distance(first, second) for first, second in combinations(COLOURS, 2)}
    assert min(apart.values()) > 15, min(apart, key=lambda pair: apart[pair])
    assert min(distance(colour, GREY) for colour in COLOURS) > 10


def test_lines_stand_out_from_white_and_from_dark_paper() -> None:
    dark = 0.0137  # light of #1f1f1f
    for colour in (*COLOURS, GREY):
        light = times(XYZ, linear(colour))[1]
        assert 1.05 / (light + 0.05) > 2, colour
        assert (light + 0.05) / (dark + 0.05) > 2.4, colour
