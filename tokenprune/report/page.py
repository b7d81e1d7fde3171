"""The content of a report, whatever it comes from (an experiment, a tune) and however it is shown."""

from dataclasses import dataclass, field
from typing import Literal

from tokenprune.drawing.palette import StyleAlias
from tokenprune.drawing.points import Charts
from tokenprune.pictures.look import Look
from tokenprune.tables.table import Table

#: What a finding says: a method is better, it is worse, or nobody knows.
Tone = Literal["better", "worse", "open"]


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
    """One method's answer about an example, and the patches that it kept.

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
        style_of: The styles of names that are no methods: candidates of a tune, methods of one of several results.
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
    style_of: tuple[StyleAlias, ...] = ()
