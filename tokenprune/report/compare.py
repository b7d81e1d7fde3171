"""Several reports side by side on one page."""

from collections.abc import Mapping
from dataclasses import replace

from tokenprune.drawing.palette import StyleAlias
from tokenprune.drawing.points import Charts
from tokenprune.errors import ConfigError
from tokenprune.report.page import Document, Finding, Page
from tokenprune.tables.table import Table


def join_pages(pages: Mapping[str, Page], table: Table) -> Page:
    """Join several pages: one main table, charts with all methods, the other tables below each other.

    A method is called ``RESULTS: method``. Examples are left out: those of different results show different questions.

    Args:
        pages: Name of the results -> their page.
        table: The main table of all; its rows are about ``RESULTS: method``.

    Raises:
        ConfigError: There are no pages, or their charts show different quantities.
    """
    if not pages:
        raise ConfigError("there are no results to compare", "name at least one folder")
    quantities = {page.charts.quantity for page in pages.values() if page.charts}
    if len(quantities) > 1:
        raise ConfigError(
            f"the results measure different things: {', '.join(sorted(quantities))}", "compare equal ones"
        )
    names = list(pages)
    return Page(
        title=f"Results side by side: {', '.join(names)}",
        ran=tuple(f"`{name}`: {page.ran[0]}" for name, page in pages.items() if page.ran),
        finding=_finding(pages),
        table=table,
        notes=tuple(f"`{name}`: {note}" for name, page in pages.items() for note in page.notes),
        charts=_charts(pages),
        tables=tuple(
            replace(table, title=f"{name}: {table.title}") for name, page in pages.items() for table in page.tables
        ),
        documents=tuple(
            Document(f"{name}: {item.title}", item.text) for name, page in pages.items() for item in page.documents
        ),
        versions=tuple((f"{name}: {what}", version) for name, page in pages.items() for what, version in page.versions),
        repeat=tuple(dict.fromkeys(line for page in pages.values() for line in page.repeat)),
        style_of=tuple(
            StyleAlias(f"{name}: {method}", method, number)
            for number, (name, page) in enumerate(pages.items())
            for method in dict.fromkeys(row.method for row in page.table.rows if row.method)
        ),
    )


def _finding(pages: Mapping[str, Page]) -> Finding:
    """The findings of all; the tone is theirs if they agree."""
    tones = {page.finding.tone for page in pages.values()}
    text = " ".join(f"`{name}`: {page.finding.text}" for name, page in pages.items())
    return Finding(text, tones.pop() if len(tones) == 1 else "open")


def _charts(pages: Mapping[str, Page]) -> Charts | None:
    charts = {name: page.charts for name, page in pages.items() if page.charts is not None}
    if not charts:
        return None
    return replace(
        next(iter(charts.values())),
        points=tuple(
            replace(point, method=f"{name}: {point.method}") for name, one in charts.items() for point in one.points
        ),
        references=tuple(
            replace(band, method=f"{name}: {band.method}") for name, one in charts.items() for band in one.references
        ),
        front=tuple(
            replace(point, method=f"{name}: {point.method}") for name, one in charts.items() for point in one.front
        ),
        log=any(one.log for one in charts.values()),
    )
