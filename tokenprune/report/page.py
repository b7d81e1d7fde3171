"""The content of a report, whatever it comes from (an experiment, a tune) and however it is shown."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from tokenprune.pictures.look import Look
from tokenprune.tables.table import Table

#: What a chart shows: the measured quantity against a cost, or candidate by candidate.
ChartKind = Literal["visual", "average", "flops", "ranking"]
#: What a finding says: a method is better, it is worse, or nobody knows.
Tone = Literal["better", "worse", "open"]


@dataclass(frozen=True)
class Point:
    """A method with a budget in the charts.

    Attributes:
        method: The method's name.
        budget: The budget in a few words.
        mean: What was measured, in the unit of the charts.
        low: Lower end of its 95 % interval.
        high: Upper end of it.
        visual: Visual tokens kept after the last stage, per sample; NaN where unknown.
        average: Visual tokens per sample and layer; NaN where unknown.
        flops_reduction: Saved share of the decoder's prefill FLOPs; NaN where unknown.
    """

    method: str
    budget: str
    mean: float
    low: float
    high: float
    visual: float = math.nan
    average: float = math.nan
    flops_reduction: float = math.nan


@dataclass(frozen=True)
class Reference:
    """What the charts draw as a band from side to side: the unpruned model.

    Attributes:
        method: Its name.
        mean: What was measured, in the unit of the charts.
        low: Lower end of its 95 % interval.
        high: Upper end of it.
        visual: Visual tokens per sample; NaN where unknown.
    """

    method: str
    mean: float
    low: float
    high: float
    visual: float = math.nan


@dataclass(frozen=True)
class Charts:
    """The charts of a report; all show the same points.

    Attributes:
        quantity: What was measured, with its unit.
        points: One per method and budget.
        kinds: The charts to show. One whose costs are all unknown is left out.
        references: Bands, e.g. of the unpruned model.
        front: Points that no other one beats in both cost and quantity; joined by a line.
        log: Whether the quantity has a logarithmic axis.
        bounds: The smallest and the largest possible value; None where there is no bound.
    """

    quantity: str
    points: tuple[Point, ...]
    kinds: tuple[ChartKind, ...] = ("visual", "average", "flops")
    references: tuple[Reference, ...] = ()
    front: tuple[Point, ...] = ()
    log: bool = False
    bounds: tuple[float | None, float | None] = (0.0, 100.0)


@dataclass(frozen=True)
class Picture:
    """An encoded picture, already small.

    Attributes:
        data: The bytes of its file.
        media_type: What they are: ``image/png``, ``image/jpeg``, ``image/webp`` ...
    """

    data: bytes = field(repr=False)
    media_type: str = "image/png"


@dataclass(frozen=True)
class ExamplePanel:
    """What one method answered about an example, and which patches it kept.

    Attributes:
        method: The method's name.
        budget: The budget in a few words; empty for the unpruned model, which is shown with every budget.
        answer: The answer.
        right: Whether it is the expected answer; None if that is unknown.
        agrees: Whether it is the unpruned model's answer; None if that is unknown.
        look: What was kept. Its own pictures are not used: the example holds them once.
    """

    method: str
    budget: str
    answer: str
    right: bool | None
    agrees: bool | None
    look: Look = field(repr=False)


@dataclass(frozen=True)
class Example:
    """One sample with what all methods made of it.

    Attributes:
        title: What it is called.
        question: The question.
        expected: The expected answer, or None.
        pictures: The pictures or frames, in the order of the prompt; empty if they cannot be shown.
        panels: One per method and budget.
    """

    title: str
    question: str
    expected: str | None
    pictures: tuple[Picture, ...]
    panels: tuple[ExamplePanel, ...]


@dataclass(frozen=True)
class Finding:
    """The one finding that stands out.

    Attributes:
        text: The finding, in one or two sentences.
        tone: What it says.
    """

    text: str
    tone: Tone = "open"


@dataclass(frozen=True)
class Document:
    """A text of the run, shown as it is.

    Attributes:
        title: Its heading.
        text: Its content.
    """

    title: str
    text: str


@dataclass(frozen=True)
class Page:
    """A report.

    Attributes:
        title: The heading.
        ran: What was run, in two sentences.
        finding: The one finding that stands out.
        table: The main table.
        notes: What a reader must know before the table. ``code`` in backticks and ``**bold**`` are shown as such.
        charts: The charts; None for none.
        tables: Further tables: gains over random, accuracy per type, timings ...
        examples: Examples, at most ten.
        documents: The config and whatever else led to the results.
        versions: Name and version of everything that ran it.
        repeat: The commands that repeat it.
        stands_for: For names that are no methods (candidates of a tune, methods of several results side by side): the
            name, the method whose colour it has, and a number, 0 or that of its results, which decides its dashes.
    """

    title: str
    ran: tuple[str, ...]
    finding: Finding
    table: Table
    notes: tuple[str, ...] = ()
    charts: Charts | None = None
    tables: tuple[Table, ...] = ()
    examples: tuple[Example, ...] = ()
    documents: tuple[Document, ...] = ()
    versions: tuple[tuple[str, str], ...] = ()
    repeat: tuple[str, ...] = ()
    stands_for: tuple[tuple[str, str, int], ...] = ()
