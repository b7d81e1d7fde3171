"""What a cell may find: exact, lossy, refused by tokenprune, or refused by transformers. Nothing between."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

import tokenprune as tp
from tokenprune.errors import UnsupportedFeatureError, UnsupportedModelError

Apply = Callable[..., AbstractContextManager[Any]]
"""`tp.apply`, or what stands for it where the same is tried on the unpruned model."""
Word = Literal["exact", "lossy", "refused", "upstream"]
ROUNDED = {"8-bit floats": 2**-4, "4-bit integers": 2 / 15}
"""Per unit of the largest logit; more is no rounding. Half a step of floats with three bits of mantissa; one of the 15
steps between the ends of a group's range, which is at most twice its largest number."""


@dataclass(frozen=True)
class Found:
    """What a cell computed beside what it should compute.

    Args:
        worst: Largest absolute difference from the oracle.
        allowed: The tolerance of exact results.
        largest: The largest logit.
        rounded: How the cache rounds what it stores, as the report says; None where it does not.
        remark: What else was seen.
    """

    worst: float
    allowed: float
    largest: float
    rounded: str | None = None
    remark: str = ""


Cell = Callable[[Apply], Found]


@dataclass(frozen=True)
class Row:
    """One row of a table.

    Args:
        name: What is used, in Markdown.
        cells: What is run, by column.
        tests: The tests that look deeper, by column, as `file.py::test`; "" stands for every column.
    """

    name: str
    cells: dict[str, Cell]
    tests: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Verdict:
    """What the page says of a cell, and why."""

    word: Word
    why: str = ""


def verdict(cell: Cell) -> Verdict:
    """Run a cell.

    Raises:
        AssertionError: It is neither exact nor lossy nor refused.
    """
    try:
        found = cell(tp.apply)
    except (UnsupportedFeatureError, UnsupportedModelError) as error:
        return Verdict("refused", error.what)
    except Exception as error:
        if isinstance(error, AssertionError) or not fails_unpruned(cell, error):
            raise
        return Verdict(
            "upstream", f"transformers itself raises {type(error).__name__}: {str(error).split('. ')[0].rstrip('.')}"
        )
    if found.rounded is not None:
        assert found.worst <= ROUNDED[found.rounded] * found.largest, f"{found} is more than rounding"
        return Verdict("lossy")
    assert found.worst <= found.allowed, f"{found} is not exact"
    return Verdict("exact", found.remark)


def fails_unpruned(cell: Cell, error: Exception) -> bool:
    """Whether the same use of the unpruned model raises the same."""
    try:
        cell(lambda *_, **__: nullcontext())
    except Exception as other:
        return (type(other), str(other)) == (type(error), str(error))
    return False
