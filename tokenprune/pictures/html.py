"""Looks in a notebook: the figure inside the page, and the report as text."""

import html
from collections.abc import Sequence

from tokenprune.errors import MissingDataError
from tokenprune.pictures.describe import describe
from tokenprune.pictures.draw import draw, encoded
from tokenprune.pictures.look import Look
from tokenprune.tables.html import picture_html


class ShownLook(Look):
    """A look that a notebook shows as its picture."""

    def _repr_html_(self) -> str:
        return html_of(self)


TEXT = "margin: 0 0 0.5em 0; padding: 0; white-space: pre-wrap; font-family: monospace; font-size: 0.9em"


def html_of(looks: Look | Sequence[Look], report: str = "", dpi: int = 150) -> str:
    """The HTML of looks and of a report in text, for ``_repr_html_``. It holds all that it shows.

    Args:
        looks: The looks, or an empty sequence where nothing can be drawn.
        report: The text above the figure.
        dpi: Dots per inch of the figure, a PNG.

    Returns:
        A ``div``. Without matplotlib it has the text, the looks in words, and how to install matplotlib.
    """
    shown = [looks] if isinstance(looks, Look) else list(looks)
    parts = [f'<pre style="{TEXT}">{html.escape(report)}</pre>'] if report else []
    if shown:
        words = " ".join(map(describe, shown))
        try:
            parts.append(picture_html(encoded(draw(shown), ".png", dpi=dpi), words))
        except MissingDataError as error:
            parts.append(f"<p>{html.escape(words)}</p><p>{html.escape(str(error))}</p>")
    return f"<div>{''.join(parts)}</div>"
