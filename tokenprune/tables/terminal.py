"""Tables as lines of text, no wider than a terminal."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from rich.cells import cell_len, chop_cells

from tokenprune.tables.table import Heading, Kind, Table

GAP = 2  # between columns
#: Words of up to so many characters stay on one line.
SHORT = 24


@dataclass(frozen=True)
class Fitted:
    """A table that fits.

    Attributes:
        heading: The lines of the headings.
        rows: The lines of every row.
        left_out: The titles of the columns that have no room.
    """

    heading: list[str]
    rows: list[list[str]]
    left_out: tuple[str, ...] = ()


def lines(table: Table, width: int | None = None) -> list[str]:
    """The headings and the rows of a table, line by line; see :func:`fit`."""
    fitted = fit(table, width)
    return [*fitted.heading, *(line for row in fitted.rows for line in row)]


def fit(table: Table, width: int | None = None) -> Fitted:
    """Lay out a table, words at the left and numbers at the right of their columns.

    Where it is too wide, headings and words are folded; where that is not enough, columns leave, those of the largest
    rank first. Numbers are never folded.

    Args:
        table: The table.
        width: Characters of a line; None for as many as it takes.
    """
    columns = [
        [heading.title, *(" ".join(row.cells[place].text.split()) for row in table.rows)]
        for place, heading in enumerate(table.columns)
    ]
    widths = _widths(table.columns, columns, width)
    kinds = [table.columns[place].kind for place in widths]

    def laid_out(line: int, at_bottom: bool = False) -> list[str]:
        cells = [_folded(columns[place][line], room) for place, room in widths.items()]
        height = max(map(len, cells), default=1)
        padded = [[""] * (at_bottom * (height - len(cell))) + cell for cell in cells]
        return [
            (" " * GAP).join(map(_aligned, texts, widths.values(), kinds)).rstrip()
            for texts in zip_longest(*padded, fillvalue="")
        ]

    return Fitted(
        laid_out(0, at_bottom=True),
        [laid_out(line + 1) for line in range(len(table.rows))],
        tuple(heading.title for place, heading in enumerate(table.columns) if place not in widths),
    )


def _widths(headings: Sequence[Heading], columns: Sequence[Sequence[str]], width: int | None) -> dict[int, int]:
    """Place of every column that has room -> its width; arguments as for :func:`fit`."""
    natural = {place: max(map(cell_len, texts)) for place, texts in enumerate(columns)}
    if width is None:
        return natural
    widths = {place: _least(texts, headings[place].kind) for place, texts in enumerate(columns)}
    while _total(widths) > width:
        leaving = max(widths, key=lambda place: (headings[place].rank, place))
        if headings[leaving].rank == 0:
            break
        del widths[leaving]
    spare = width - _total(widths)
    for place in sorted(widths, key=lambda place: headings[place].kind != "text"):  # folded words read worse
        more = max(0, min(natural[place] - widths[place], spare))
        widths[place] += more
        spare -= more
    return widths


def _least(texts: Sequence[str], kind: Kind) -> int:
    """The smallest width of a column: that of its numbers, or of its short words, with the heading folded."""
    title, *cells = texts
    heading = max((cell_len(word) for word in title.split()), default=0)
    whole = max(map(cell_len, cells), default=0)
    return max(heading, whole if kind != "text" else min(whole, SHORT))


def _total(widths: Mapping[int, int]) -> int:
    return sum(widths.values()) + GAP * (len(widths) - 1)


def _folded(text: str, width: int) -> list[str]:
    """The lines of a text, broken at spaces, and inside words that are longer than a line."""
    found = [""]
    for word in text.split():
        if cell_len(f"{found[-1]} {word}".lstrip()) <= width:
            found[-1] = f"{found[-1]} {word}".lstrip()
            continue
        parts = chop_cells(word, max(width, 1))
        found = [*found, *parts] if found[-1] else parts
    return found


def _aligned(text: str, width: int, kind: Kind) -> str:
    free = " " * (width - cell_len(text))
    return text + free if kind == "text" else free + text
