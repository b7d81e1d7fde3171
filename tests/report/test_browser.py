"""The page in a real browser: it opens, sorts, filters, switches methods off, and fits a phone."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.report.pages import EVIL, examples, page, panel, picture
from tests.support.browser import launched
from tokenprune.report.html import render
from tokenprune.report.page import Document, Example, ExamplePanel

#: Width and height of a page in points, as Chromium rounds them.
A4 = (594.95996, 841.91998)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with launched() as running:
        yield running


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(render(page()), encoding="utf-8")
    return path


class Opened:
    """A page in a tab, with all that the browser complained about and asked for."""

    def __init__(self, browser: Any, file: Path, **options: Any) -> None:
        self.problems: list[str] = []
        self.requests: list[str] = []
        self.tab = browser.new_page(**{"viewport": {"width": 1200, "height": 900}, **options})
        self.tab.on("console", lambda message: self.problems.append(f"{message.type}: {message.text}"))
        self.tab.on("pageerror", lambda error: self.problems.append(str(error)))
        self.tab.on("dialog", lambda dialog: (self.problems.append("a script ran"), dialog.dismiss()))
        self.tab.on("request", lambda request: self.requests.append(request.url))
        self.tab.goto(file.as_uri())
        self.tab.wait_for_function("document.body.dataset.drawn === 'yes'")

    def texts(self, selector: str) -> list[str]:
        return [text.strip() for text in self.tab.locator(selector).all_inner_texts()]

    def column(self, number: int) -> list[str]:
        """The texts of a column of the main table that are shown, from the top."""
        return self.texts(f"#results tbody tr:not([hidden]) > :nth-child({number})")

    def marks(self, chart: int = 0) -> int:
        return int(self.tab.locator(f"#chart-{chart} .mark-symbol path").count())

    def colour(self) -> str:
        return str(self.tab.evaluate("getComputedStyle(document.body).backgroundColor"))


@pytest.fixture
def opened(browser: Any, file: Path) -> Iterator[Opened]:
    made = Opened(browser, file)
    yield made
    made.tab.close()


def test_it_opens_without_complaints_and_asks_for_nothing(opened: Opened, file: Path) -> None:
    assert opened.problems == []
    asked = [url for url in opened.requests if not url.startswith(("data:", "blob:"))]
    assert asked == [file.as_uri()]
    assert opened.texts("h1") == ["Made up"]
    assert opened.texts(".finding code, .finding strong") == ["fastv", "better"]


def test_every_chart_has_a_mark_per_point(opened: Opened) -> None:
    assert opened.tab.locator(".chart").count() == 3
    for chart in range(3):
        assert opened.marks(chart) == 4 * 2
        assert opened.tab.locator(f"#chart-{chart} svg .mark-rect path").count() == 1  # the unpruned model


def test_points_of_one_budget_do_not_hide_each_other(opened: Opened) -> None:
    places = opened.tab.evaluate(
        "[...document.querySelectorAll('#chart-0 .mark-symbol path')].map((mark) => mark.getBoundingClientRect().x)"
    )
    places.sort()
    assert len(places) == 8
    assert min(after - before for before, after in pairwise(places)) > 5


def test_a_method_is_switched_off_with_the_keyboard(opened: Opened) -> None:
    box = opened.tab.locator("#methods input[value=visionzip]")
    panels = opened.tab.locator(".panel h3", has_text="visionzip")
    shown = panels.count()
    assert shown > 0
    box.focus()
    opened.tab.keyboard.press("Space")
    opened.tab.wait_for_function("document.querySelectorAll('#chart-2 .mark-symbol path').length === 6")
    assert [opened.marks(chart) for chart in range(3)] == [6, 6, 6]
    assert panels.count() == 0
    assert opened.texts("#methods-status") == ["4 of 5 methods shown"]
    opened.tab.click("#methods button[data-all='']")
    opened.tab.wait_for_function("document.querySelectorAll('.chart .mark-symbol path').length === 0")
    opened.tab.click("#methods button[data-all='1']")
    opened.tab.wait_for_function("document.querySelectorAll('.chart .mark-symbol path').length === 24")
    assert panels.count() == shown
    assert opened.problems == []


def test_the_marks_of_a_method_are_found(opened: Opened) -> None:
    """While one points at a method, the others fade."""
    opacity = "[...document.querySelectorAll('#chart-0 .mark-symbol path')].map((mark) => mark.getAttribute('opacity'))"
    assert len(set(opened.tab.evaluate(opacity))) == 1
    opened.tab.hover("#methods label:has(input[value=fastv])")
    opened.tab.wait_for_function(f"new Set({opacity}).size === 2")
    strongest = max(map(float, opened.tab.evaluate(opacity)))
    assert [float(value) for value in opened.tab.evaluate(opacity)].count(strongest) == 2  # of two budgets
    opened.tab.hover("h1")
    opened.tab.wait_for_function(f"new Set({opacity}).size === 1")


def test_numbers_sort_as_numbers_in_both_directions(opened: Opened) -> None:
    heading = opened.tab.locator("#results thead th").nth(3)
    heading.locator("button").click()
    assert heading.get_attribute("aria-sort") == "descending"
    down = opened.column(4)
    assert down[:2] == ["144.0", "128.0"]  # as texts, 16.0 would stand before 144.0
    assert down[-2:] == ["unknown", "unknown"]
    opened.tab.keyboard.press("Enter")
    assert heading.get_attribute("aria-sort") == "ascending"
    up = opened.column(4)
    assert [float(text) for text in up[:-2]] == sorted(float(text) for text in down[:-2])
    assert up[-2:] == ["unknown", "unknown"]  # what is unknown comes last, both ways
    opened.tab.locator("#results thead button").first.click()
    assert heading.get_attribute("aria-sort") == "none"
    names = opened.column(1)
    assert names[-2:] == ["visionzip", "visionzip"]
    assert "sorted by method, ascending" in opened.texts("#announce")


def test_rows_are_filtered(opened: Opened) -> None:
    assert opened.texts("#rows-status") == ["9 of 9 rows"]
    opened.tab.fill("#filter", "VISION")
    assert opened.column(1) == ["visionzip", "visionzip"]
    assert opened.texts("#rows-status") == ["2 of 9 rows"]
    opened.tab.select_option("#budget", "keep 8")
    assert opened.column(2) == ["keep 8"]
    opened.tab.fill("#filter", "")
    assert set(opened.column(2)) == {"", "keep 8"}  # the unpruned model stays to compare with
    opened.tab.fill("#filter", "no such method")
    assert opened.column(1) == []


def test_a_name_is_never_markup(opened: Opened) -> None:
    assert opened.problems == []
    assert EVIL in opened.texts("#results tbody th")
    assert EVIL in opened.texts("#methods label")
    assert EVIL in opened.texts(".panel h3")
    mark = opened.tab.locator("#chart-0 .mark-symbol path").last
    for place in range(8):
        opened.tab.locator("#chart-0 .mark-symbol path").nth(place).hover(force=True)
        if EVIL in opened.tab.locator("#vg-tooltip-element").inner_text():
            break
    else:
        pytest.fail(f"no tooltip names the method {mark}")
    assert opened.problems == []


def test_examples_show_what_is_kept(opened: Opened) -> None:
    """The worst first; a pixel per patch; the words for readers who do not see them."""
    first = opened.tab.locator(".example").first
    assert opened.texts(".example summary")[0].startswith(("image", "stages", "tiles", "video", "nowhere"))
    badges = first.locator(".panel .badge").all_inner_texts()
    assert badges == sorted(badges, key=lambda text: "wrong" not in text) or badges[0].endswith("right")
    image = opened.tab.locator(".example", has_text="What is in the image?").locator(".panel", has_text="fastv").first
    assert "kept 4 of 16 visual tokens" in image.locator("[role=img]").get_attribute("aria-label")
    alpha = image.locator("canvas").evaluate(
        "(canvas) => [...canvas.getContext('2d').getImageData(0, 0, 4, 4).data].filter((_, at) => at % 4 === 3)"
    )
    assert [at for at, value in enumerate(alpha) if value == 0] == [0, 5, 10, 15]
    assert min(value for at, value in enumerate(alpha) if at not in (0, 5, 10, 15)) > 150


def test_only_a_wrong_answer_is_red_and_examples_of_a_wrong_model_come_last(browser: Any, tmp_path: Path) -> None:
    def example(title: str, unpruned: bool, *pruned: ExamplePanel) -> Example:
        return Example(title, "What?", "yes", (picture(),), (panel("unpruned", "", [], right=unpruned), *pruned))

    differs = panel("fastv", "keep 8", [[0]], right=True, agrees=False)
    wrong = panel("random", "keep 8", [[0]], right=False, agrees=False)
    shown = (example("lost", False, differs, wrong), example("right", True, wrong), example("same", True))
    file = tmp_path / "report.html"
    file.write_text(render(page(["fastv", "random"], ["keep 8"], shown=shown)), encoding="utf-8")
    made = Opened(browser, file)
    assert [text.partition(":")[0] for text in made.texts(".example summary")] == ["right", "lost", "same"]
    red = made.tab.locator(".badge.bad").all_inner_texts()
    assert red
    assert all("wrong" in text for text in red)
    assert any("\u2260 unpruned" in text for text in made.texts(".badge:not(.bad):not(.good)"))
    assert made.problems == []
    made.tab.close()


def test_stages_tiles_and_frames(opened: Opened) -> None:
    def part(title: str) -> Any:
        return (
            opened.tab.locator(".example", has_text=f"What is in the {title}?")
            .locator(".panel", has_text="fastv")
            .first
        )

    alpha = (
        part("stages")
        .locator("canvas")
        .evaluate(
            "(canvas) => [...canvas.getContext('2d').getImageData(0, 0, 4, 4).data].filter((_, at) => at % 4 === 3)"
        )
    )
    assert alpha[0] == alpha[1] == 0
    assert 0 < alpha[2] == alpha[5] < alpha[6] == alpha[11] < alpha[12] == alpha[15]  # the later, the lighter
    assert "12, 6, 2 before layers 1, 2, 3" in part("stages").inner_text()
    assert [text.strip() for text in part("tiles").locator("figcaption").all_inner_texts()] == ["overview", "tiles"]
    assert part("tiles").locator(".picture").nth(1).locator("canvas").count() == 4
    lower_right = part("tiles").locator("canvas").last.evaluate("(canvas) => [canvas.style.left, canvas.style.top]")
    assert lower_right == ["50%", "50%"]
    assert part("video").locator("img").count() == 3
    sources = part("video").locator("img").evaluate_all("(images) => new Set(images.map((image) => image.src)).size")
    assert sources == 3
    assert part("nowhere").locator("img").count() == 0
    assert part("nowhere").locator("canvas").bounding_box()["height"] > 20


def test_the_budget_of_the_examples_is_chosen(opened: Opened) -> None:
    before = opened.tab.locator(".panel").count()
    opened.tab.select_option("#example-budget", "keep 8")
    assert opened.texts("#examples-status") == ["5 examples, keep 8"]
    assert opened.tab.locator(".panel").count() == before


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_follow_the_system_and_the_button(browser: Any, file: Path, scheme: str) -> None:
    made = Opened(browser, file, color_scheme=scheme)
    white, black = "rgb(255, 255, 255)", made.colour()
    assert (made.colour() == white) == (scheme == "light")
    text = "getComputedStyle(document.querySelector('#chart-0 .role-axis-label text')).fill"
    label = made.tab.evaluate(text)
    made.tab.click("#theme")
    assert (made.colour() == white) == (scheme == "dark")
    assert made.colour() != black
    assert made.tab.evaluate(text) != label
    made.tab.emulate_media(media="print")
    assert made.colour() == white  # paper is white
    made.tab.close()


@pytest.mark.parametrize("width", [400, 1200])
def test_the_page_does_not_scroll_sideways(browser: Any, file: Path, width: int) -> None:
    made = Opened(browser, file, viewport={"width": width, "height": 800})
    assert made.tab.evaluate("document.documentElement.scrollWidth") == width
    svg = made.tab.locator("#chart-0 svg.marks").bounding_box()
    assert 200 < svg["width"] <= width
    made.tab.close()


def test_the_keyboard_skips_to_the_results(opened: Opened) -> None:
    opened.tab.keyboard.press("Tab")
    skip = opened.tab.locator(":focus")
    assert skip.inner_text() == "Skip to the results"
    assert skip.bounding_box()["x"] >= 0  # it is shown while it has the focus
    opened.tab.keyboard.press("Enter")
    assert opened.tab.evaluate("document.activeElement.id") == "main"


def test_on_paper_everything_is_open(opened: Opened) -> None:
    opened.tab.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    closed = opened.tab.locator("main details:not([open])").evaluate_all(
        "(items) => items.filter((item) => !item.closest('.vega-embed')).length"
    )
    assert closed == 0
    assert len(opened.tab.pdf()) > 20_000


def test_paper_has_whole_tables_and_nothing_to_press(opened: Opened) -> None:
    opened.tab.emulate_media(media="print", color_scheme="dark")
    styles = opened.tab.evaluate(
        """() => Object.fromEntries([["table", "breakInside"], ["tbody tr", "breakInside"], [".panel", "breakInside"],
            ["h2", "breakAfter"], ["thead", "display"]].map(([name, rule]) =>
            [name, [...new Set([...document.querySelectorAll(name)].map((item) => getComputedStyle(item)[rule]))]]))"""
    )
    assert styles == {
        "table": ["avoid"],
        "tbody tr": ["avoid"],
        ".panel": ["avoid"],
        "h2": ["avoid"],
        "thead": ["table-header-group"],  # repeated where a table is longer than a page
    }
    pressed = opened.tab.locator("button, input, select, .vega-embed summary, .values, .live")
    assert pressed.count() > 20
    seen = "(all) => all.filter((item) => item.checkVisibility()).map((item) => item.outerHTML)"
    assert pressed.evaluate_all(seen) == []
    assert opened.texts("#results thead th")[:2] == ["method", "budget"]  # the text of the buttons is there
    assert opened.texts("#methods label") == [EVIL, "fastv", "visionzip", "random", "unpruned"]  # a legend


def test_a_method_that_is_switched_off_is_not_on_paper(opened: Opened) -> None:
    opened.tab.uncheck("#methods input[value=fastv]")
    opened.tab.emulate_media(media="print")
    assert opened.texts("#methods label >> visible=true") == [EVIL, "visionzip", "random", "unpruned"]


def test_an_experiment_of_five_methods_is_four_pages_on_paper(browser: Any, tmp_path: Path) -> None:
    methods = ["entropyprune", "entropyprune-paper", "entropyprune-reference", "fastv", "random"]
    one = examples(methods, ["keep 64"])[0]
    shown = tuple(replace(one, title=f"digits-test-{number}") for number in range(10))
    made = page(methods, ["keep 64"], shown=shown)
    (small,) = made.tables
    config = Document("Configuration", "\n".join(f"key{number}: value" for number in range(45)))
    tables = tuple(
        replace(small, title=f"Table {number}", rows=small.rows * 6, note="Two lines. " * 16) for number in range(5)
    )
    path = tmp_path / "report.html"
    path.write_text(render(replace(made, tables=tables, documents=(config,))), encoding="utf-8")
    made_tab = Opened(browser, path, color_scheme="dark")
    width = made_tab.tab.locator("#chart-0 svg.marks").bounding_box()["width"]
    pdf = made_tab.tab.pdf(prefer_css_page_size=True, print_background=True)
    assert len(re.findall(rb"/Type\s*/Page\b", pdf)) <= 4
    assert {tuple(map(float, box)) for box in re.findall(rb"/MediaBox \[0 0 ([\d.]+) ([\d.]+)\]", pdf)} == {A4}
    made_tab.tab.wait_for_function("!document.documentElement.classList.contains('paper')")
    assert made_tab.tab.locator("#chart-0 svg.marks").bounding_box()["width"] == width  # the screen is as before
    assert made_tab.problems == []
    made_tab.tab.close()


def test_charts_are_drawn_again_for_paper(opened: Opened) -> None:
    """Scaled down from a wide window, their letters would be too small to read."""
    opened.tab.set_viewport_size({"width": 1600, "height": 900})
    opened.tab.wait_for_function("document.querySelector('#chart-0 svg.marks').clientWidth > 360")
    opened.tab.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    opened.tab.emulate_media(media="print")
    svg = opened.tab.locator("#chart-0 svg.marks")
    scale = svg.bounding_box()["width"] / float(svg.get_attribute("width"))
    assert scale == pytest.approx(0.7, abs=0.02)  # of 12 pixels


def test_the_values_of_marks_are_reached_with_the_keyboard(opened: Opened) -> None:
    """The table below a chart says what its tooltips say; the drawing itself is hidden from screen readers."""
    summary = opened.tab.locator(".chart").first.locator(".values summary")
    summary.focus()
    opened.tab.keyboard.press("Enter")
    rows = opened.tab.locator("#chart-0-values tbody tr")
    assert rows.count() == 4 * 2 + 1  # all points, and the unpruned model
    assert rows.first.is_visible()
    opened.tab.locator("#chart-0 .mark-symbol path").first.hover(force=True)
    opened.tab.wait_for_selector("#vg-tooltip-element.visible")
    tooltip = opened.texts("#vg-tooltip-element td.value")
    assert len(tooltip) == 6
    assert tooltip in [opened.texts(f"#chart-0-values tbody tr:nth-child({place}) > *") for place in range(1, 9)]
    svg = opened.tab.locator(".plot svg.marks")
    assert svg.evaluate_all("(all) => all.map((one) => one.getAttribute('aria-hidden'))") == ["true"] * 3
    menus = opened.tab.locator(".vega-embed summary")
    names = [menus.nth(number).get_attribute("aria-label") for number in range(menus.count())]
    assert names[0] == "Save the chart: Accuracy against visual tokens kept"
    opened.tab.uncheck("#methods input[value=fastv]")
    assert rows.locator("visible=true").count() == 3 * 2 + 1


def test_a_page_without_charts_and_examples(browser: Any, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text(render(replace(page(shown=()), charts=None)), encoding="utf-8")
    made = Opened(browser, path)
    assert made.problems == []
    assert made.tab.locator("#methods, #examples, .chart").count() == 0
    assert path.stat().st_size < 100_000  # no charts, no library
    made.tab.close()
