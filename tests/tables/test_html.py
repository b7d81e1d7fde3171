"""Tables in HTML: the same cells as everywhere, and nothing that a name could smuggle in."""

from __future__ import annotations

from tokenprune.tables.html import parts_html, table_html
from tokenprune.tables.table import Cell, Heading, Row, Table

TABLE = Table(
    "Results <1>",
    (Heading("method"), Heading("accuracy %", "interval")),
    (Row((Cell("<script>"), Cell("97.0 ± 1.0", 97.0))), Row((Cell("best", strong=True), Cell("", None)))),
    "**bold** & more",
)


def test_cells_stand_where_their_kind_says_and_texts_are_escaped() -> None:
    html = table_html(TABLE)
    assert html.count("<tr>") == 3
    assert "Results &lt;1&gt;</caption>" in html
    assert '<td style="text-align: left">&lt;script&gt;</td>' in html
    assert '<td style="text-align: right; white-space: nowrap">97.0 ± 1.0</td>' in html
    assert "<strong>best</strong>" in html
    assert "<p>bold &amp; more</p>" in html
    assert "<script>" not in html


def test_parts_are_tables_sentences_and_pictures() -> None:
    html = parts_html(TABLE, "With `a<b`,\n**so**", b"\x89PNG")
    assert html.startswith('<div><div style="overflow-x: auto"><table>')  # a wide table scrolls alone
    assert '<p style="white-space: pre-line">With a&lt;b,\nso</p>' in html
    assert 'src="data:image/png;base64,iVBORw=="' in html
