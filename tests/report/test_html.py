"""What the page's text holds: everything inside, nothing trusted, and not too large."""

from __future__ import annotations

import json
import math
import re
from base64 import b64decode
from dataclasses import replace
from html.parser import HTMLParser
from importlib.resources import files
from typing import Any

import numpy as np
import pytest

from tests.report.pages import EVIL, WHOLE, look, page, panel, picture
from tokenprune.drawing.palette import GREY
from tokenprune.errors import ConfigError
from tokenprune.report.compare import join_pages
from tokenprune.report.examples import example_data, packed
from tokenprune.report.html import inline, render
from tokenprune.report.page import Example, Page

MOST_BYTES = 5_000_000


class Tags(HTMLParser):
    """All tags of a page with their attributes, and the text of its data."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.data = ""
        self._in_data = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._in_data = ("id", "data") in attrs

    def handle_endtag(self, tag: str) -> None:
        self._in_data = False

    def handle_data(self, data: str) -> None:
        if self._in_data:
            self.data += data


def test_nothing_is_loaded_from_elsewhere() -> None:
    links = [
        value
        for _, attributes in Tags(render(page())).tags
        for name, value in attributes.items()
        if name in ("src", "href", "srcset", "action", "data") and value
    ]
    assert links
    assert all(link.startswith(("#", "data:")) for link in links)


def test_a_name_cannot_end_a_script() -> None:
    """The page has as many scripts as without the name, and its data read back."""
    html = render(page())
    assert EVIL not in html
    scripts = [tag for tag, _ in Tags(html).tags].count("script")
    assert scripts == 3  # data, library, page
    data = json.loads(Tags(html).data)
    assert EVIL in {point["method"] for chart in data["charts"] for point in chart["data"]["values"]}
    assert html.count("alert(1)") > 3


def test_unknown_numbers_are_no_numbers_in_the_data() -> None:
    made = page(shown=())
    assert made.charts is not None
    points = tuple(replace(point, flops_reduction=math.nan) for point in made.charts.points)
    html = render(replace(made, charts=replace(made.charts, points=points)))
    data = json.loads(Tags(html).data, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert [chart["description"].rpartition("against ")[2] for chart in data["charts"]] == [
        "visual tokens kept",
        "layer average",
    ]  # FLOPs are unknown: no such chart


def test_hollow_marks_and_bold_names_are_explained() -> None:
    made = page(shown=())
    assert made.charts is not None
    first, *rest = made.charts.points
    points = (replace(first, hollow=True, strong=True), *rest)
    explained = render(replace(made, charts=replace(made.charts, points=points)))
    for words in ("a hollow mark was not measured on all samples", "a bold name is within the noise"):
        assert words in explained
        assert words not in render(made)


def test_words_in_backticks_and_stars() -> None:
    assert str(inline("a `<b>` and **c**")) == "a <code>&lt;b&gt;</code> and <strong>c</strong>"
    assert str(inline("<i>`")) == "&lt;i&gt;`"


@pytest.mark.parametrize(("values", "bits"), [([0, 1, 1], 1), ([0, 3, 2, 1, 3], 2), ([9, 0, 15], 4), ([200, 7], 8)])
def test_masks_are_packed(values: list[int], bits: int) -> None:
    text, used = packed(np.array(values, dtype=np.uint8))
    assert used == bits
    word = "".join(f"{byte:08b}" for byte in b64decode(text))
    assert [int(word[at * bits : (at + 1) * bits], 2) for at in range(len(values))] == values
    assert len(b64decode(text)) == math.ceil(len(values) * bits / 8)


def test_no_tokens_are_an_empty_mask() -> None:
    assert packed(np.zeros(0, dtype=np.uint8)) == ("", 1)


def test_pictures_and_masks_stand_once() -> None:
    kept = [[0, 1, 2, 3]]
    panels = tuple(panel(f"m{number}", f"b{budget}", kept) for number in range(5) for budget in range(3))
    (data,) = example_data([Example("one", "What?", None, (picture(),), panels)])
    assert len(data["pictures"]) == len(data["masks"]) == len(data["layouts"]) == 1
    assert len(data["panels"]) == 15
    assert data["panels"][0]["kept"] == [4]
    assert data["panels"][0]["tokens"] == 16


def zoo(views: int = 1) -> Page:
    """A page of 23 methods, 7 budgets and ten examples with 576 patches per view and random masks."""
    rng = np.random.default_rng(0)
    grid = tuple(replace(WHOLE, rows=24, columns=24, picture=number) for number in range(views))
    methods, budgets = (
        [f"method-{number}" for number in range(23)],
        [f"keep_ratio 0.{number}" for number in range(1, 8)],
    )
    noise = picture().data + rng.bytes(25_000)  # as large as a photograph of 336 pixels
    pictures = tuple(replace(picture(), data=noise) for _ in range(views))
    examples = []
    for number in range(10):
        panels = [
            replace(panel(method, budget, []), look=look(method, grid, [rng.permutation(576 * views)[:100].tolist()]))
            for method in methods
            for budget in budgets
        ]
        examples.append(Example(f"example {number}", "What is this?", "yes", pictures, tuple(panels)))
    return page(methods, budgets, tuple(examples))


@pytest.mark.slow
@pytest.mark.parametrize("views", [1, 5], ids=["an image", "an overview and tiles"])
def test_the_page_of_a_zoo_stays_small(views: int) -> None:
    assert len(render(zoo(views)).encode()) < MOST_BYTES


def test_results_side_by_side() -> None:
    one, two = page(["fastv", "random"], shown=()), page(["fastv"], ["keep 8"], shown=())
    rows = tuple(replace(row, method=f"first: {row.method}") for row in one.table.rows)
    both = join_pages({"first": one, "second": two}, replace(one.table, rows=rows))
    assert both.table.rows == rows
    assert both.charts is not None
    assert {point.method for point in both.charts.points} == {"first: fastv", "first: random", "second: fastv"}
    data = json.loads(Tags(render(both)).data)
    colours = data["charts"][0]["layer"][-1]["encoding"]["fill"]["scale"]
    colour = dict(zip(colours["domain"], colours["range"], strict=True))
    assert {name for name, value in colour.items() if value == GREY} == {
        "first: unpruned",
        "first: random",
        "second: unpruned",
    } & set(colour)
    alone = json.loads(Tags(render(one)).data)["charts"][0]["layer"][-1]["encoding"]["fill"]["scale"]
    own = dict(zip(alone["domain"], alone["range"], strict=True))
    assert colour["first: fastv"] == colour["second: fastv"] == own["fastv"]  # as in every other plot
    with pytest.raises(ConfigError, match="there are no results to compare"):
        join_pages({}, one.table)
    assert two.charts is not None
    other = replace(two, charts=replace(two.charts, quantity="agreement, %"))
    with pytest.raises(ConfigError, match="measure different things: accuracy, %, agreement, %"):
        join_pages({"first": one, "second": other}, one.table)


def contrast(one: str, other: str) -> float:
    """The ratio of two colours by WCAG 2, 1 to 21."""

    def light(colour: str) -> float:
        shares = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    dim, bright = sorted((light(one), light(other)))
    return (bright + 0.05) / (dim + 0.05)


@pytest.mark.parametrize("theme", [":root", ':root[data-theme="dark"]'])
def test_text_stands_out_from_all_that_is_behind_it(theme: str) -> None:
    assert contrast("#ffffff", "#000000") == pytest.approx(21)
    css = files("tokenprune.report").joinpath("templates", "page.css").read_text(encoding="utf-8")
    block = css.partition(f"{theme} {{")[2].partition("}")[0]
    colour = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block))
    pairs = [(text, page) for text in ("text", "soft") for page in ("page", "panel", "stripe")]
    pairs += [("text", f"{tone}-page") for tone in ("good", "bad", "open")]
    pairs += [("good", "good-page"), ("bad", "bad-page"), ("soft", "open-page"), ("accent", "page")]
    low = {pair: round(contrast(*(colour[name] for name in pair)), 2) for pair in pairs}
    assert min(low.values()) >= 4.5, low


def test_every_heading_says_what_it_is() -> None:
    """Column and row headings have a scope, tables a caption, regions a name."""
    tags: list[tuple[str, Any]] = Tags(render(page())).tags
    assert all(attributes.get("scope") in ("col", "row") for tag, attributes in tags if tag == "th")
    tables = [attributes["id"] for tag, attributes in tags if tag == "table"]
    captions = [attributes["id"] for tag, attributes in tags if tag == "caption"]
    assert captions == [f"{name}-caption" for name in tables]
    ids = [attributes["id"] for _, attributes in tags if attributes.get("id")]
    assert len(ids) == len(set(ids))
    named = [attributes["aria-labelledby"] for _, attributes in tags if "aria-labelledby" in attributes]
    assert set(named) <= set(ids)
    assert re.search(r'<html lang="en">', render(page(shown=())))
