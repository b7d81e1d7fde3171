"""Figures that were published, with their sources."""

from __future__ import annotations

from pydantic import Field

from tokenprune.config import Config

from .plan import HERE


class Scores(Config):
    """Scores of one row.

    Attributes:
        table: Name of the table.
        row: Name of the row.
        values: Benchmark -> score, on the scale of the table.
        source: Where they were read.
    """

    table: str
    row: str
    values: dict[str, float] = Field(min_length=1)
    source: str = Field(min_length=1)


class Share(Config):
    """The mean share of the unpruned model's scores that a row keeps.

    Attributes:
        table: Name of the table.
        row: Name of the row.
        percent: The share.
        source: Where it was read.
        note: What to know about it.
    """

    table: str
    row: str
    percent: float = Field(gt=0)
    source: str = Field(min_length=1)
    note: str = ""


class Figures(Config):
    """All published figures."""

    scores: tuple[Scores, ...]
    shares: tuple[Share, ...]


def read_figures() -> Figures:
    """All published figures; errors as for :meth:`tokenprune.config.Config.from_yaml`."""
    return Figures.from_yaml(HERE / "published.yaml")
