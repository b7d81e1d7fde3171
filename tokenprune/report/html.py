"""A report as one self-contained HTML file. Needs jinja2 and altair (the extra ``report``)."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from tokenprune.output.lines import json_ready
from tokenprune.palette import DASHES, GREY, MethodStyle, styles
from tokenprune.report.charts import MARKERS, chart_specs, library, references, rows
from tokenprune.report.examples import example_data
from tokenprune.report.page import Cell, Page

#: Methods whose lines are drawn; more would be a tangle.
MOST_LINES = 8
#: Panels of one budget up to which all examples are open at first.
MOST_OPEN = 60


def render(page: Page) -> str:
    """The page as HTML with everything inside: styles, scripts, data, pictures. Nothing is loaded from elsewhere.

    Texts of the page are not trusted: they are escaped, also within the data.

    Args:
        page: The report.
    """
    shown = {panel.method for example in page.examples for panel in example.panels}
    if page.charts:
        shown.update(point.method for point in page.charts.points)
        shown.update(band.method for band in page.charts.references)
    drawn = _styles(page, shown | {row.method for row in page.table.rows if row.method})
    examples = example_data(page.examples)
    budgets = list(dict.fromkeys(panel.budget for item in page.examples for panel in item.panels if panel.budget))
    data: dict[str, Any] = {
        "charts": chart_specs(page.charts, drawn) if page.charts else [],
        "points": rows(page.charts) if page.charts else [],
        "references": references(page.charts) if page.charts else [],
        "examples": examples,
        "mostLines": MOST_LINES,
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
            markers=MARKERS,
            marker_names={marker: f"mark-{number}" for number, marker in enumerate(MARKERS)},
            table_budgets=list(dict.fromkeys(row.budget for row in page.table.rows if row.budget)),
            example_budgets=budgets,
            open_all=panels <= MOST_OPEN,
            css=Markup(_packaged("page.css")),
            js=Markup(_packaged("page.js")),
            library=Markup(library()) if data["charts"] else "",
        )
    )


def _styles(page: Page, names: set[str]) -> dict[str, MethodStyle]:
    """The style of every name on the page."""
    method = {name: of for name, of, _ in page.stands_for}
    numbers = {name: number for name, _, number in page.stands_for}
    found = styles(method.get(name, name) for name in names)
    drawn = {name: found[method.get(name, name)] for name in names}
    return drawn | {
        name: replace(drawn[name], dash=DASHES[numbers[name] % len(DASHES)]) for name in numbers if name in drawn
    }


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("tokenprune.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["inline"] = inline
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
    """What a cell is sorted by, for the script; empty for nothing."""
    if cell.value is None:
        return cell.text
    return "" if math.isnan(cell.value) else repr(float(cell.value))
