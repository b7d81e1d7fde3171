"""A report as one self-contained HTML file. Needs jinja2 and vl-convert (the extra ``report``)."""

import math
import re
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from tokenprune.budgets.label import in_words
from tokenprune.drawing.palette import GREY, styles
from tokenprune.drawing.vega import library
from tokenprune.output.lines import json_ready
from tokenprune.report.examples import example_data
from tokenprune.report.page import Page
from tokenprune.tables.table import Cell

#: Panels of one budget up to which all examples are open at first.
MOST_OPEN = 60


def render(page: Page) -> str:
    """The page as HTML with everything inside: styles, scripts, data, pictures. Nothing is loaded from elsewhere.

    Texts of the page are not trusted: they are escaped, also within the data.

    Args:
        page: The report.
    """
    shown = {panel.method for example in page.examples for panel in example.panels}
    shown.update(page.charts.methods if page.charts else ())
    drawn = styles(shown | {row.method for row in page.table.rows if row.method}, page.style_of)
    budgets = list(dict.fromkeys(panel.budget for item in page.examples for panel in item.panels if panel.budget))
    charts = [chart for kind in page.charts.kinds for chart in kind.draw(page.charts, drawn)] if page.charts else []
    data: dict[str, Any] = {
        "charts": [chart.spec for chart in charts],
        "examples": example_data(page.examples),
    }
    panels = sum(panel.budget in ("", *budgets[:1]) for item in page.examples for panel in item.panels)
    return (
        _environment()
        .get_template("page.html")
        .render(
            page=page,
            data=json_ready(data),
            methods=sorted(shown, key=lambda method: (drawn[method].colour == GREY, method)),
            styles=drawn,
            table_budgets=list(dict.fromkeys(row.budget for row in page.table.rows if row.budget)),
            example_budgets=budgets,
            open_all=panels <= MOST_OPEN,
            css=Markup(_packaged("page.css")),
            js=Markup(_packaged("page.js")),
            charts=charts,
            library=Markup(library()) if charts else "",
        )
    )


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("tokenprune.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["inline"] = inline
    environment.filters["in_words"] = in_words
    environment.filters["sort_value"] = sort_value
    return environment


def _packaged(name: str) -> str:
    return files("tokenprune.report").joinpath("templates", name).read_text(encoding="utf-8")


def inline(text: str) -> Markup:
    """A sentence with ```code``` and ``**bold**`` as HTML; everything else is escaped."""
    safe = str(escape(text))
    safe = re.sub(r"`([^`]+)`", r"<code>\1</code>", safe)
    return Markup(re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", safe))


def sort_value(cell: Cell) -> str:
    """The key that the script sorts a cell by; empty for nothing."""
    if cell.value is None:
        return cell.text
    return "" if math.isnan(cell.value) else repr(float(cell.value))
