"""Made-up pages for tests."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image

from tokenprune.adapters.views import View
from tokenprune.drawing.against import COSTS
from tokenprune.drawing.points import Charts, Point
from tokenprune.pictures.look import Look, StageLook
from tokenprune.report.page import Document, Example, ExamplePanel, Finding, Page, Picture
from tokenprune.tables.table import Cell, Heading, Row, Table

#: A name that ends a script and starts one, if it is ever taken for markup.
EVIL = "</script><script>alert(1)</script>"


def picture(side: int = 48, colour: tuple[int, int, int] = (200, 30, 30)) -> Picture:
    file = io.BytesIO()
    Image.new("RGB", (side, side), colour).save(file, "PNG")
    return Picture(file.getvalue())


def cells_of(views: Sequence[View]) -> np.ndarray:
    """All cells of the views in a row."""
    found = [
        (number, row, column)
        for number, view in enumerate(views)
        for row in range(view.rows)
        for column in range(view.columns)
    ]
    return np.array(found, dtype=np.int64).reshape(-1, 3)


def look(method: str, views: Sequence[View], kept: Sequence[Sequence[int]]) -> Look:
    """A look whose stages keep the tokens with these numbers, cell by cell."""
    cells = cells_of(views)
    stages = []
    for layer, numbers in enumerate(kept, 1):
        flags = np.zeros(len(cells), dtype=bool)
        flags[list(numbers)] = True
        stages.append(StageLook(layer, flags))
    return Look(method, tuple(views), cells, tuple(stages))


WHOLE = View(0, (0.0, 0.0, 1.0, 1.0), 4, 4)


def panel(
    method: str, budget: str, kept: Sequence[Sequence[int]], *, right: bool | None = True, **more: object
) -> ExamplePanel:
    """A panel on one picture of 4 x 4 patches."""
    views = more.pop("views", (WHOLE,))
    answer = str(more.pop("answer", "yes" if right else "no"))
    agrees = more.pop("agrees", right)
    return ExamplePanel(method, budget, answer, right, agrees, look(method, views, kept))  # type: ignore[arg-type]


def examples(methods: Sequence[str], budgets: Sequence[str]) -> tuple[Example, ...]:
    """One of each kind: an image, one with several stages, an overview with tiles, a video, one without pictures."""
    overview = View(0, (0.0, 0.0, 1.0, 1.0), 2, 2, "overview")
    tiles = [View(0, (x, y, x + 0.5, y + 0.5), 2, 2, "tiles") for y in (0.0, 0.5) for x in (0.0, 0.5)]
    frames = [View(number, (0.0, 0.0, 1.0, 1.0), 2, 2) for number in range(3)]
    kinds: list[tuple[str, tuple[Picture, ...], Sequence[View], Sequence[Sequence[int]]]] = [
        ("image", (picture(),), (WHOLE,), [[0, 5, 10, 15]]),
        ("stages", (picture(),), (WHOLE,), [list(range(12)), list(range(6)), [0, 1]]),
        ("tiles", (picture(),), (overview, *tiles), [[0, 4, 19]]),
        ("video", tuple(picture(24, (30, 80 * number, 90)) for number in range(3)), frames, [[0, 11]]),
        ("nowhere", (), (WHOLE,), [[3]]),
    ]
    made = []
    for number, (title, pictures, views, kept) in enumerate(kinds):
        panels = [panel("unpruned", "", [], views=views)]
        for place, method in enumerate(methods):
            for budget in budgets:
                panels.append(panel(method, budget, kept, right=(place + number) % 2 == 0, views=views))
        made.append(Example(title, f"What is in the {title}?", "yes", pictures, tuple(panels)))
    return tuple(made)


def page(
    methods: Sequence[str] = ("fastv", "visionzip", EVIL, "random"),
    budgets: Sequence[str] = ("keep 64", "keep 8"),
    shown: tuple[Example, ...] | None = None,
) -> Page:
    """A page with every part. The accuracy of method m with budget b is 90 - 7 m - 11 b; its half-width is 5."""
    points, rows = [], [Row((Cell("unpruned"), Cell(""), Cell("95.0 ± 1.0", 0.95), Cell("144.0", 144.0)), "unpruned")]
    for number, budget in enumerate(budgets):
        visual = 128.0 / (number + 1) ** 3
        for place, method in enumerate(methods):
            mean = 90.0 - 7 * place / max(1, len(methods) / 4) - 11 * number
            points.append(Point(method, budget, mean, mean - 5, mean + 5, visual, visual + 10, 1 - visual / 200))
            known = place != 1
            cells = (
                Cell(method),
                Cell(budget),
                Cell(f"{mean:.1f} ± 5.0", mean / 100),
                Cell(f"{visual:.1f}" if known else "unknown", visual if known else math.nan),
            )
            rows.append(Row(cells, method, budget))
    columns = (
        Heading("method"),
        Heading("budget"),
        Heading("accuracy %", "interval"),
        Heading("visual tokens", "number"),
    )
    return Page(
        title="Made up",
        ran=("It ran.", "It was measured."),
        finding=Finding("`fastv` is **better**.", "better"),
        notes=("A note about `code`.",),
        table=Table("Results", columns, tuple(rows), "A note."),
        charts=Charts(
            "accuracy, %", tuple(points), COSTS, references=(Point("unpruned", "", 95.0, 94.0, 96.0, 144.0),)
        ),
        tables=(
            Table(
                "Per type", (Heading("method"), Heading("exist", "number")), (Row((Cell("fastv"), Cell("1.0", 1.0))),)
            ),
        ),
        examples=examples(methods, budgets) if shown is None else shown,
        documents=(Document("Configuration", f"model: {EVIL}"),),
        versions=(("tokenprune", "0.1.0"),),
        repeat=("tokenprune run config.yaml",),
    )
