"""Every patch is where it should be: kept ones as they are in the picture, dropped ones faded."""

from __future__ import annotations

import builtins
import hashlib
import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from tokenprune.adapters.views import View
from tokenprune.errors import ConfigError, MissingDataError, OutputError, UnsupportedFeatureError
from tokenprune.pictures.draw import draw, save
from tokenprune.pictures.html import html_of
from tokenprune.pictures.look import Look, StageLook
from tokenprune.pictures.raster import base
from tokenprune.pictures.sheets import sheets

Box = tuple[float, float, float, float]
WHOLE: Box = (0.0, 0.0, 1.0, 1.0)
DPI = 150


def lattice(*views: View) -> NDArray[np.int64]:
    """The cells of all tokens, view by view and row by row."""
    places = [(n, r, c) for n, view in enumerate(views) for r in range(view.rows) for c in range(view.columns)]
    return np.array(places, dtype=np.int64)


def colour(view: int, row: int, column: int) -> tuple[int, int, int]:
    """A saturated colour for each patch, another for each of its neighbours."""
    number = 37 * view + 11 * row + 5 * column
    return (255, (83 * number) % 256, 0) if (row + column + view) % 2 else (0, (59 * number) % 256, 255)


def painted(height: int, width: int, views: list[tuple[int, View]]) -> NDArray[np.uint8]:
    """A picture on which each patch of the views has its colour."""
    picture = np.full((height, width, 3), 120, dtype=np.uint8)
    for number, view in views:
        left, top, right, bottom = view.box
        for y in range(height):
            for x in range(width):
                column = ((x + 0.5) / width - left) / (right - left) * view.columns
                row = ((y + 0.5) / height - top) / (bottom - top) * view.rows
                if 0 <= row < view.rows and 0 <= column < view.columns:
                    picture[y, x] = colour(number, int(row), int(column))
    return picture


def every(step: int, tokens: int) -> NDArray[np.bool_]:
    return np.arange(tokens) % step == 0


def pruned(views: tuple[View, ...], pictures: tuple[NDArray[np.uint8], ...], **fields: Any) -> Look:
    cells = fields.pop("cells", lattice(*views))
    stages = fields.pop("stages", (StageLook(2, every(3, len(cells))),))
    return Look(fields.pop("method", "fastv"), views, cells, stages, pictures, **fields)


@dataclass
class Rendered:
    """The pixels of a figure."""

    figure: Figure

    def __post_init__(self) -> None:
        canvas = FigureCanvasAgg(self.figure)
        self.figure.set_dpi(DPI)
        canvas.draw()
        self.pixels = np.asarray(canvas.buffer_rgba())[..., :3].astype(int)

    def panel(self, end: str) -> Axes:
        """The only panel whose name ends with a text."""
        (found,) = (axes for axes in self.figure.axes if axes.get_label().endswith(end))
        return found

    def at(self, axes: Axes, x: float, y: float) -> NDArray[np.int64]:
        """The colour at a place in shares of the picture."""
        across, up = axes.transData.transform((x, y))
        return self.pixels[int(len(self.pixels) - up), int(across)]


def check(look: Look, stage: int = 0, **settings: Any) -> None:
    """Every cell of every view: its colour is that of the picture if it was kept, and faded if it was not."""
    rendered = Rendered(draw(look, **settings))
    kept = look.stages[stage].kept
    seen = 0
    for token, (number, row, column) in enumerate(look.cells):
        if number < 0:
            continue
        view = look.views[number]
        overview = ", overview" if view.title == "overview" else ""
        panel = rendered.panel(f"layer {look.stages[stage].layer}, picture, picture {view.picture + 1}{overview}")
        left, top, right, bottom = view.box
        height, width = look.pictures[view.picture].shape[:2]
        for part in (0.5,) if max(view.rows, view.columns) > 9 or width < 40 else (0.15, 0.5, 0.85):
            x = left + (column + part) / view.columns * (right - left)
            y = top + (row + part) / view.rows * (bottom - top)
            if not (0 <= x < 1 and 0 <= y < 1):
                continue  # padding
            own = look.pictures[view.picture][int(y * height), int(x * width)].astype(int)
            shown = rendered.at(panel, x, y)
            if kept[token]:
                assert np.abs(shown - own).max() <= 1, f"kept: {token} at {number, row, column}: {shown}, not {own}"
            else:
                assert np.ptp(shown) < 0.4 * np.ptp(own), f"dropped: {token} at {number, row, column}: {shown} of {own}"
            seen += 1
    assert seen > 0


# ---- where patches are ----


@pytest.mark.each("box")
@pytest.mark.parametrize(
    ("rows", "columns", "height", "width", "box"),
    [
        (6, 6, 120, 120, WHOLE),
        (4, 4, 21, 17, WHOLE),  # fewer pixels than the figure has
        (4, 9, 90, 300, WHOLE),
        (3, 14, 60, 420, WHOLE),  # very wide
        (14, 3, 420, 60, WHOLE),  # very tall
        (6, 6, 120, 180, (1 / 6, 0.0, 5 / 6, 1.0)),  # the middle of a wide picture
        (6, 6, 180, 120, (0.0, 1 / 6, 1.0, 5 / 6)),
        (6, 6, 120, 180, (0.0, -0.25, 1.0, 1.25)),  # padded to a square
        (24, 24, 240, 240, WHOLE),
        pytest.param(6, 6, 2400, 1800, WHOLE, marks=pytest.mark.slow),  # scaled down
    ],
)
def test_patches_are_in_their_place(rows: int, columns: int, height: int, width: int, box: Box) -> None:
    view = View(0, box, rows, columns)
    if height * width > 1_000_000:
        picture = painted(height // 8, width // 8, [(0, view)]).repeat(8, axis=0).repeat(8, axis=1)
    else:
        picture = painted(height, width, [(0, view)])
    check(pruned((view,), (picture,)))


@pytest.mark.slow
def test_many_columns_and_stages() -> None:
    view = View(0, WHOLE, 8, 8)
    picture = painted(80, 80, [(0, view)])
    first, second, third = every(2, 64), every(4, 64), every(16, 64)
    look = pruned((view,), (picture,), stages=tuple(StageLook(*pair) for pair in ((2, first), (5, second), (9, third))))
    for number in range(3):
        check(look, number)
        check(look, number, columns=2)
        check(look, number, columns=1, width=4)


@pytest.mark.parametrize("gap", [0.0, 0.004])
def test_tiles_are_put_where_they_belong(gap: float) -> None:
    """Also if their edges were rounded to pixels, so that neighbours share a sliver."""
    edges = ((0.0, 0.5 + gap), (0.5 - gap, 1.0))
    tiles = [View(0, (left, top, right, bottom), 3, 4, "tiles") for top, bottom in edges for left, right in edges]
    overview = View(0, WHOLE, 2, 3, "overview")
    look = pruned((*tiles, overview), (painted(120, 160, list(enumerate(tiles))),))
    rendered = Rendered(draw(look))
    for token, (number, row, column) in enumerate(look.cells[:48]):
        left, top, right, bottom = tiles[number].box
        x, y = left + (column + 0.5) / 4 * (right - left), top + (row + 0.5) / 3 * (bottom - top)
        shown = rendered.at(rendered.panel("picture, picture 1"), x, y)
        assert (tuple(shown) == colour(number, row, column)) == (token % 3 == 0)
    assert [axes.get_label()[-8:] for axes in rendered.figure.axes] == ["icture 1", "overview"]


def test_an_overview_is_small_beside_its_tiles() -> None:
    overview, tiles = View(0, WHOLE, 3, 3, "overview"), View(0, WHOLE, 6, 9, "tiles")
    picture = np.full((120, 180, 3), (255, 0, 0), dtype=np.uint8)
    look = pruned((overview, tiles), (picture,))
    rendered = Rendered(draw(look))
    small = rendered.panel("picture, picture 1, overview").get_position()
    large = rendered.panel("picture, picture 1").get_position()
    assert small.width < 0.5 * large.width
    assert small.x0 > large.x1
    assert {"tiles", "overview"} <= set(texts(rendered.figure))
    check(look)


def test_separators_are_on_no_picture() -> None:
    view = View(0, WHOLE, 3, 3)
    cells = np.insert(lattice(view), [3, 6, 9], -1, axis=0)
    check(pruned((view,), (painted(60, 60, [(0, view)]),), cells=cells))


@pytest.mark.parametrize("count", [2, 8, 11])
def test_frames_and_several_pictures(count: int) -> None:
    views = tuple(View(number, WHOLE, 3, 4) for number in range(count))
    pictures = tuple(painted(60, 80, [(number, view)]) for number, view in enumerate(views))
    check(pruned(views, pictures))


def test_pictures_of_several_shapes() -> None:
    views = (View(0, WHOLE, 3, 4), View(1, WHOLE, 6, 2), View(2, WHOLE, 4, 4))
    sizes = ((60, 80), (120, 40), (40, 40))
    check(pruned(views, tuple(painted(*size, [(n, views[n])]) for n, size in enumerate(sizes))))


def test_frames_that_stand_for_two() -> None:
    """Every second picture has tokens: only those are drawn."""
    views = tuple(View(number, WHOLE, 2, 2) for number in (0, 2, 4))
    pictures = tuple(painted(40, 40, [(number, View(0, WHOLE, 2, 2))]) for number in range(6))
    look = pruned(views, pictures)
    check(look)
    names = [axes.get_label() for axes in draw(look).axes]
    assert [name[-1] for name in names] == ["1", "3", "5"]


def test_many_frames_are_thinned_out_and_it_says_so() -> None:
    views = tuple(View(number, WHOLE, 2, 2) for number in range(33))
    look = pruned(views, ())
    figure = draw(look, pictures=5)
    shown = [axes.get_label().rsplit(" ", 1)[1] for axes in figure.axes]
    assert shown == ["1", "9", "17", "25", "33"]
    assert "5 of 33 pictures are shown: every 8th from 1 to 33." in texts(figure)
    assert len(draw(look, pictures=33).axes) == 33


def test_what_the_model_did_not_see_is_faded_hatched_and_said() -> None:
    view = View(0, (0.25, 0.0, 0.75, 1.0), 4, 4)
    picture = painted(100, 200, [(0, view)])
    picture[:, :50] = picture[:, 150:] = (255, 0, 0)
    for look in (pruned((view,), (picture,)), pruned((view,), (picture,), stages=(), method="unpruned")):
        figure = draw(look)
        rendered = Rendered(figure)
        panel = rendered.panel("picture, picture 1")
        places = [rendered.at(panel, x, y) for x in (0.1, 0.9) for y in (0.3, 0.72)]
        assert all(np.ptp(place) < 60 for place in places)
        hatched = [patch.get_bbox().bounds for patch in panel.patches if patch.get_hatch()]
        assert sorted(hatched) == [(0.0, 0.0, 0.25, 1.0), (0.75, 0.0, 0.25, 1.0)]
        assert any("not seen by the model" in text for text in texts(figure))
    assert not any("not seen" in text for text in texts(draw(pruned((View(0, WHOLE, 4, 4),), (picture,)))))


def test_the_unpruned_model_has_the_plain_picture() -> None:
    view = View(0, WHOLE, 4, 4)
    look = pruned((view,), (painted(80, 80, [(0, view)]),), stages=(), method="unpruned", answer="two")
    rendered = Rendered(draw(look))
    for row in range(4):
        for column in range(4):
            place = rendered.at(rendered.panel("picture, picture 1"), (column + 0.5) / 4, (row + 0.5) / 4)
            assert tuple(place) == colour(0, row, column)
    assert [axes.get_label() for axes in rendered.figure.axes] == ["0: unpruned, unpruned, picture, picture 1"]
    assert {"unpruned", "all 16 visual tokens", '"two"'} <= set(texts(rendered.figure))


def test_without_pictures_the_grid_is_grey_and_its_cells_are_square() -> None:
    look = pruned((View(0, WHOLE, 3, 6),), ())
    rendered = Rendered(draw(look))
    panel = rendered.panel("picture, picture 1")
    kept, dropped = rendered.at(panel, 0.5 / 6, 0.5 / 3), rendered.at(panel, 1.5 / 6, 0.5 / 3)
    assert np.ptp(kept) == np.ptp(dropped) == 0
    assert kept[0] + 20 < dropped[0]
    box = panel.get_window_extent()
    assert box.width / box.height == pytest.approx(2, rel=0.01)


def test_white_pages_are_faded_to_grey() -> None:
    page = np.full((80, 80, 3), 255, dtype=np.uint8)
    rendered = Rendered(draw(pruned((View(0, WHOLE, 4, 4),), (page,))))
    panel = rendered.panel("picture, picture 1")
    assert rendered.at(panel, 0.125, 0.125).min() == 255
    assert rendered.at(panel, 0.375, 0.125).max() < 200


def test_all_frames_of_a_video_are_faded_alike() -> None:
    views = tuple(View(number, WHOLE, 2, 2) for number in range(3))
    frames = tuple(np.full((40, 40, 3), value, dtype=np.uint8) for value in (20, 60, 255))
    rendered = Rendered(draw(pruned(views, frames, stages=(StageLook(2, np.zeros(12, dtype=bool)),))))
    shown = [rendered.at(rendered.panel(f"picture {number}"), 0.25, 0.25).mean() for number in (1, 2, 3)]
    assert 160 < shown[0] < shown[1] < shown[2]


def test_stages_that_do_not_fit_in_a_row_have_one_answer() -> None:
    stages = tuple(StageLook(layer, every(layer, 16)) for layer in (2, 3, 4))
    figure = draw(pruned((View(0, WHOLE, 4, 4),), (), stages=stages, answer="two"), columns=2)
    said = texts(figure)
    assert said.count('"two"') == 1
    assert said.count("fastv") == 2
    assert sum(text.startswith("layer ") for text in said) == 3


# ---- lines around what was kept ----


def test_kept_patches_that_touch_have_one_line_around_them() -> None:
    view = View(0, WHOLE, 3, 3)
    kept = np.array([1, 1, 0, 0, 1, 0, 0, 0, 0], dtype=bool)
    figure = draw(pruned((view,), (), stages=(StageLook(2, kept),)))
    (panel,) = figure.axes
    lines = {tuple(map(tuple, np.round(3 * line).astype(int))) for line in panel.collections[-1].get_segments()}
    assert lines == {
        ((0, 0), (2, 0)),  # above both
        ((0, 1), (1, 1)),  # below the first
        ((1, 2), (2, 2)),  # below the third
        ((0, 0), (0, 1)),
        ((1, 1), (1, 2)),
        ((2, 0), (2, 2)),  # right of the second and the third
    }


# ---- scores ----


def test_scores_are_on_the_grid() -> None:
    view = View(0, WHOLE, 2, 3)
    scores = np.array([1, 2, 3, np.nan, 5, 6], dtype=np.float32)
    figure = draw(pruned((view,), (), stages=(StageLook(2, every(2, 6), scores),)))
    (heat,) = (axes for axes in figure.axes if "heat" in axes.get_label())
    values = heat.images[0].get_array()
    assert values.filled(-1).tolist() == [[1, 2, 3], [-1, 5, 6]]
    assert heat.images[0].get_clim() == (1, 6)
    assert any("no score" in text for text in texts(figure))
    (scale,) = (axes for axes in figure.axes if "scale" in axes.get_label())
    assert [label.get_text() for label in scale.get_xticklabels()] == ["1", "6"]


def test_outliers_do_not_hide_the_other_scores() -> None:
    view = View(0, WHOLE, 20, 20)
    scores = np.linspace(0, 1, 400, dtype=np.float32)
    scores[7] = 1000
    figure = draw(pruned((view,), (), stages=(StageLook(2, every(2, 400), scores),)))
    (heat,) = (axes for axes in figure.axes if "heat" in axes.get_label())
    low, high = heat.images[0].get_clim()
    assert low == 0
    assert 0.9 < high < 1.1


@pytest.mark.parametrize("values", [[1, 1, 1, 1], [np.nan] * 4, [np.inf, 0, 1, -np.inf], [0, 0, 0, 1e-30]])
def test_odd_scores(values: list[float]) -> None:
    look = pruned((View(0, WHOLE, 2, 2),), (), stages=(StageLook(2, every(2, 4), np.array(values, np.float32)),))
    (heat,) = (axes for axes in draw(look).axes if "heat" in axes.get_label())
    low, high = heat.images[0].get_clim()
    assert np.isfinite([low, high]).all()
    assert low < high
    assert heat.images[0].get_array().count() == np.sum(~np.isnan(values))


def test_methods_without_scores_have_no_heat_map() -> None:
    scored = StageLook(2, every(2, 4), np.arange(4, dtype=np.float32))
    view = (View(0, WHOLE, 2, 2),)
    one, other = pruned(view, (), stages=(scored,)), pruned(view, (), method="dart")
    names = [axes.get_label() for axes in draw([one, other]).axes if "heat" in axes.get_label()]
    assert names == ["0: fastv, layer 2, heat, picture 1"]
    assert not any("heat" in axes.get_label() for axes in draw([one, other], scores=False).axes)


# ---- merged tokens ----


def merging(target: list[int], view: View, *more: View) -> Look:
    """A token with the target -1 is kept."""
    merged = np.array(target)
    return pruned((view, *more), (), method="tome", stages=(StageLook(2, merged < 0, None, merged),))


def test_merged_tokens_have_the_colour_of_their_target_and_a_line_to_it() -> None:
    look = merging([-1, 0, -1, 0, 2, -1], View(0, WHOLE, 2, 3))
    figure = draw(look)
    (panel,) = (axes for axes in figure.axes if "merge" in axes.get_label())
    cells = panel.images[0].get_array()[..., :3].reshape(6, 3)
    for one in range(6):
        for other in range(6):
            same = [0, 0, 2, 0, 2, 5][one] == [0, 0, 2, 0, 2, 5][other]
            assert np.array_equal(cells[one], cells[other]) == same
    lines = [np.round(12 * line).astype(int).tolist() for line in panel.collections[-1].get_segments()]
    assert lines == [[[6, 3], [2, 3]], [[2, 9], [2, 3]], [[6, 9], [10, 3]]]
    dots = np.round(12 * np.column_stack(panel.lines[0].get_data())).astype(int).tolist()
    assert dots == [[2, 3], [10, 3]]  # token 5 was kept, and nothing was merged into it
    assert any(text.startswith("3 merged into") for text in texts(figure))


def test_chains_of_merges_end_in_the_kept_token() -> None:
    look = merging([-1, 0, 1, 2], View(0, WHOLE, 2, 2))
    (panel,) = (axes for axes in draw(look).axes if "merge" in axes.get_label())
    assert len(np.unique(panel.images[0].get_array().reshape(4, -1), axis=0)) == 1


def test_merges_into_another_frame_say_into_which() -> None:
    views = [View(number, WHOLE, 1, 2) for number in range(3)]
    figure = draw(merging([-1, -1, 0, -1, 0, 3], *views))
    panels = [axes for axes in figure.axes if "merge" in axes.get_label()]
    first, second, third = (panel.images[0].get_array()[0, :, :3] for panel in panels)
    assert np.array_equal(first[0], first[1])
    assert np.array_equal(second[0], first[0])
    assert np.array_equal(third[0], first[0])
    assert np.array_equal(third[1], second[1])
    assert not np.array_equal(third[0], third[1])
    (scale,) = (axes for axes in figure.axes if axes.get_label().endswith("pictures"))
    assert [label.get_text() for label in scale.get_xticklabels()] == ["1", "3"]


def test_many_merged_tokens_have_no_lines() -> None:
    target = np.full(576, 0)
    target[::9] = -1
    look = merging(target.tolist(), View(0, WHOLE, 24, 24))
    (panel,) = (axes for axes in draw(look).axes if "merge" in axes.get_label())
    assert len(panel.collections) == 1  # the edges of the clusters


def test_merges_can_be_left_out() -> None:
    look = merging([-1, 0, -1, 0], View(0, WHOLE, 2, 2))
    assert not any("merge" in axes.get_label() for axes in draw(look, merges=False).axes)


# ---- words ----


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.texts]


def test_title_answers_and_verdicts() -> None:
    view = (View(0, WHOLE, 4, 4),)
    fields: dict[str, Any] = {"question": "How many dogs?", "expected": "two"}
    looks = [
        pruned(view, (), stages=(), method="unpruned", answer="two", **fields),
        pruned(view, (), answer="Two", budget="keep 6", **fields),
        pruned(view, (), answer="five", method="dart", **fields),
    ]
    said = texts(draw(looks))
    assert said[0] == "How many dogs?"
    assert {"unpruned", "fastv", "dart", "keep 6", '"two"', '"Two"', '"five"'} <= set(said)
    assert said.count("✓ right") == 2
    assert said.count("= as unpruned") == 1
    assert said.count("≠ changed") == said.count("✗ wrong (expected: two)") == 1
    assert "layer 2: 6 of 16 tokens" in said or "layer 2: 6 of 16 visual tokens" in said


def test_words_that_matplotlib_would_read_as_formulas_stay_as_they_are(tmp_path: Path) -> None:
    view = (View(0, WHOLE, 4, 4),)
    words = r"costs $5_a and $\frac{1}{2 % & < > \ #"
    look = pruned(view, (), question=words, answer=words, method="my_method$x$", budget="a_b $")
    for ending in ("png", "svg", "pdf"):
        draw(look, tmp_path / f"words.{ending}")
    svg = (tmp_path / "words.svg").read_text(encoding="utf-8")
    assert "costs $5_a and $\\frac{1}{2 % &amp; &lt; &gt; \\ #" in svg
    assert "my_method$x$" in svg


@pytest.mark.parametrize("shape", [(1, 3000), (3000, 1)])
def test_thin_pictures_need_no_gigabytes(shape: tuple[int, int]) -> None:
    """Cells have eight pixels at least, along the short side; the long one has enough."""
    thin = replace(pruned((View(0, WHOLE, 4, 4),), ()), pictures=(np.zeros((*shape, 3), dtype=np.uint8),))
    (sheet,) = sheets(thin)
    pixels = base(sheet, 4000)
    assert sorted(pixels.shape[:2]) == [32, 3000]


def test_looks_of_several_samples_are_refused() -> None:
    """The figure has one question, and answers are compared with one unpruned answer."""
    look = pruned((View(0, WHOLE, 4, 4),), (), question="How many?", answer="two")
    with pytest.raises(ConfigError, match=r"several samples: they ask 'How many\?' and 'Which colour\?'"):
        draw([look, replace(look, question="Which colour?")])
    draw([look, replace(look, question="")])


def test_control_characters_break_no_file(tmp_path: Path) -> None:
    text = "one\x00two\x07\nthree \udc80"
    look = pruned((View(0, WHOLE, 4, 4),), (), question=text, answer=text, expected=text)
    for ending in ("png", "svg", "pdf"):
        draw(look, tmp_path / f"control.{ending}")
    svg = ElementTree.parse(tmp_path / "control.svg")
    assert next(item.text for item in svg.iter("{http://purl.org/dc/elements/1.1/}title")) == "one two three"
    with Image.open(tmp_path / "control.png") as opened:
        assert opened.text["Title"] == "one two three"  # type: ignore[attr-defined]


def test_letters_without_a_font_are_one_warning(tmp_path: Path) -> None:
    letters = "\U00012000\U00012001\U00012002"  # cuneiform
    with pytest.warns(UserWarning, match="no installed font has 3 of the letters") as caught:
        draw(pruned((View(0, WHOLE, 4, 4),), (), question=letters, answer=letters), tmp_path / "look.png")
    assert len(caught) == 1


def test_long_answers_are_cut_and_long_words_are_broken() -> None:
    view = (View(0, WHOLE, 4, 4),)
    figure = draw(
        [pruned(view, (), answer=f"{n} " + "a long answer that goes on " * 40, question="why? " * 200) for n in "xyz"]
    )
    inches = figure.get_size_inches()
    assert inches[0] == 7
    assert inches[1] < 8
    assert sum(text.endswith('…"') for text in texts(figure)) == 3
    assert_inside(figure)
    assert_inside(draw(pruned(view, (), answer="unbroken" * 100, method="method-" * 30, budget="b" * 200), width=3))


def assert_inside(figure: Figure) -> None:
    """No text reaches over the page."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    page = figure.bbox
    for text in figure.texts:
        box = text.get_window_extent(canvas.get_renderer())
        assert page.x0 <= box.x0 + 1, text.get_text()
        assert box.x1 <= page.x1 + 1, text.get_text()
        assert page.y0 <= box.y0 + 1, text.get_text()
        assert box.y1 <= page.y1 + 1, text.get_text()


@pytest.mark.slow
def test_panels_and_texts_do_not_overlap() -> None:
    view = (View(0, WHOLE, 4, 4),)
    stage = StageLook(2, every(4, 16), np.arange(16, dtype=np.float32), np.where(every(4, 16), -1, 0))
    fields: dict[str, Any] = {"question": "How many?", "expected": "two", "answer": "a long answer " * 9}
    unpruned = pruned(view, (), stages=(), method="unpruned", **fields)
    three = (stage, replace(stage, layer=5), replace(stage, layer=9))
    for looks in (
        [pruned(view, (), stages=(stage,), **fields)],
        [unpruned, pruned(view, (), stages=(stage,), **fields)],
        [unpruned, pruned(view, (), stages=three, **fields), pruned(view, (), **fields)],
    ):
        figure = draw(looks)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        renderer = canvas.get_renderer()
        boxes = [text.get_window_extent(renderer).shrunk(0.9, 0.6) for text in figure.texts]
        boxes += [axes.get_window_extent(renderer) for axes in figure.axes]
        for place, one in enumerate(boxes):
            for other in boxes[place + 1 :]:
                assert not one.overlaps(other)
        assert_inside(figure)


def test_a_method_has_its_colour_of_every_plot() -> None:
    figure = draw([pruned((View(0, WHOLE, 4, 4),), (), method=name) for name in ("fastv", "visionzip")])
    colours = ["#{:02x}{:02x}{:02x}".format(*(round(255 * v) for v in p.get_facecolor()[:3])) for p in figure.patches]
    assert colours == ["#d55e00", "#009e73"]


# ---- files ----


def example() -> Look:
    view = View(0, WHOLE, 4, 4)
    scores = np.arange(16, dtype=np.float32)
    merged = np.where(every(4, 16), -1, 0)
    stage = StageLook(2, every(4, 16), scores, merged)
    return pruned((view,), (painted(80, 80, [(0, view)]),), stages=(stage,), question="How many?", answer="two")


@pytest.mark.parametrize("ending", ["png", "svg", "pdf"])
def test_files_are_the_same_every_time(tmp_path: Path, ending: str) -> None:
    for name in ("one", "two"):
        draw(example(), tmp_path / f"{name}.{ending}")
    one, two = (hashlib.sha256((tmp_path / f"{name}.{ending}").read_bytes()).hexdigest() for name in ("one", "two"))
    assert one == two


def test_png_has_its_size_and_its_text_alternative(tmp_path: Path) -> None:
    figure = draw(example(), tmp_path / "look.png", dpi=200)
    with Image.open(tmp_path / "look.png") as opened:
        assert opened.size[0] == 1400
        assert opened.text["Title"] == "How many?"  # type: ignore[attr-defined]
        assert "fastv keeps 4 before layer 2" in opened.text["Description"]  # type: ignore[attr-defined]
    assert figure.get_size_inches()[0] == 7


def test_svg_has_text_and_no_date(tmp_path: Path) -> None:
    draw(example(), tmp_path / "deep" / "look.svg")
    svg = (tmp_path / "deep" / "look.svg").read_text(encoding="utf-8")
    assert re.search(r"<text[^>]*>How many\?</text>", svg)
    assert "<dc:date>" not in svg
    assert "fastv keeps 4 before layer 2" in svg


def test_pdf_has_fonts_that_journals_take(tmp_path: Path) -> None:
    draw(example(), tmp_path / "look.pdf")
    pdf = (tmp_path / "look.pdf").read_bytes()
    assert b"/Type3" not in pdf
    assert b"/FontFile2" in pdf
    assert b"CreationDate" not in pdf


@pytest.mark.parametrize("name", ["look.gif", "look", "look.png.txt", ""])
def test_other_formats_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(OutputError, match=r"cannot be saved as .*; end the name with \.png, \.svg, \.pdf"):
        draw(example(), tmp_path / name)


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        save(draw(example()), tmp_path / "file" / "look.png")


def test_no_looks_no_views_or_too_few_pictures() -> None:
    with pytest.raises(ConfigError, match="no looks"):
        draw([])
    with pytest.raises(UnsupportedFeatureError, match="not known where the visual tokens are"):
        draw(replace(example(), views=(), cells=np.full((16, 3), -1)))
    with pytest.raises(ConfigError, match="1 pictures are given, and the tokens are on 2"):
        draw(replace(example(), views=(View(1, WHOLE, 4, 4),)))
    for setting in ("width", "columns", "pictures", "row", "dpi"):
        with pytest.raises(ConfigError, match=f"{setting} is 0"):
            draw(example(), **{setting: 0})


@pytest.fixture
def no_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    """What happens where it is not installed."""
    real = builtins.__import__

    def missing(name: str, *arguments: Any, **named: Any) -> Any:
        if name.partition(".")[0] == "matplotlib":
            raise ModuleNotFoundError("No module named 'matplotlib'", name="matplotlib")
        return real(name, *arguments, **named)

    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", missing)
    monkeypatch.setitem(sys.modules, "matplotlib", None)


@pytest.mark.usefixtures("no_matplotlib")
def test_without_matplotlib_one_line_says_how_to_install_it() -> None:
    with pytest.raises(
        MissingDataError, match=r"drawing needs .*'matplotlib'.*pip install 'tokenprune-mllm\[report\]'"
    ):
        draw(example())


# ---- notebooks ----


def test_html_has_the_report_and_the_figure() -> None:
    text = html_of(replace(example(), answer='<b> "x" & y'), "layers [2] <i>")
    assert "layers [2] &lt;i&gt;" in text
    assert 'src="data:image/png;base64,iVBOR' in text
    assert "&lt;b&gt; &quot;x&quot; &amp; y" in text
    assert "<b>" not in text


def test_html_of_nothing_to_draw_is_the_report() -> None:
    assert re.sub(r' style="[^"]*"', "", html_of([], "no prefill yet")) == "<div><pre>no prefill yet</pre></div>"


@pytest.mark.usefixtures("no_matplotlib")
def test_html_without_matplotlib_says_how_to_install_it() -> None:
    text = html_of(example(), "report")
    assert "<img" not in text
    assert "fastv keeps 4 before layer 2" in text
    assert "pip install &#x27;tokenprune-mllm[report]&#x27;" in text
