"""The page: its tables, the notes below them, and the tests that look deeper."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import transformers

from tests.support.compatibility import (
    caches,
    calls,
    compilers,
    conversations,
    generating,
    methods,
    models,
    training,
)
from tests.support.compatibility.judging import Row, Verdict, verdict
from tests.support.compatibility.kinds import EAGER, KINDS

ROOT = Path(__file__).resolve().parents[3]
PAGE = ROOT / "docs" / "compatibility.md"
COMMAND = "python -m tests.support.compatibility"

HEAD = """# What works

This page says what works inside an `apply` block, and how exactly. Every cell was run on a tiny model and compared with
an oracle: the same model with the dropped tokens masked out. `{command}` runs them and writes
the page (transformers {version}, on a CPU); a test runs them again and compares.

| In a cell | Means |
|---|---|
| exact | all logits that were compared are the oracle's, up to the rounding of float32 |
| lossy | the cache itself rounds what it stores, pruned or not; tokens are dropped exactly |
| refused | an error of tokenprune says why, and what to use instead; the notes have its words |
| upstream | transformers itself raises an error, pruned or not |
| - | no case of its own |

The columns are kinds of KV cache: the *default* one (`DynamicCache`), a *static* one whose steps run eagerly or are
*compiled* by transformers, one of 8-bit floats (`QuantizedCache(backend="fp8")`), and none (`use_cache=False`). Flash
attention needs a GPU and is not on this page.

See also: [Wrappers, compiled models, threads](using.md) for examples, [Model types](families.md) for the models, and
[Architecture](architecture.md#refused) for all that is refused, and why.
"""

TESTS = """## Tests

`tests/support/test_compatibility.py` runs every row. These tests, in `tests/`, look deeper: at more model families,
layers, paddings and numbers of pictures.
"""


@dataclass(frozen=True)
class Table:
    """One table of the page.

    Args:
        title: Its heading.
        columns: Names of the cells, and their headings.
        rows: Its rows.
    """

    title: str
    columns: dict[str, str]
    rows: tuple[Row, ...]


EACH = {kind: kind for kind in KINDS}
CALLER = {"default": "default cache", "static": "static cache"}
ONE = {"default": "in the block"}

TABLES = (
    Table("Generate", EACH, generating.ROWS),
    Table("Go on after a prompt", {kind: kind for kind in conversations.CACHES}, conversations.ROWS),
    Table("Methods", EACH, methods.ROWS),
    Table("Prompts, attention, layers", {kind: kind for kind in EAGER}, models.ROWS),
    Table("Other caches", ONE, caches.ROWS),
    Table("Models that you compile", CALLER, compilers.ROWS),
    Table("Calls and wrappers", ONE, calls.ROWS),
    Table("Training", ONE, training.ROWS),
)


def head() -> str:
    """What stands above the tables."""
    version = ".".join(transformers.__version__.split(".")[:2])
    return HEAD.format(command=COMMAND, version=version)


def section(table: Table) -> str:
    """A table, after its cells have run: reasons stand below it, or in a column where there is one of cells only."""
    found = [[verdict(row.cells[name]) if name in row.cells else None for name in table.columns] for row in table.rows]
    if len(table.columns) == 1:
        lines = [line("", *table.columns.values(), "why"), "|---|---|---|"]
        lines += [line(row.name, one.word, one.why) for row, (one,) in zip(table.rows, found, strict=True) if one]
        return "\n".join([f"## {table.title}", "", *lines, ""])
    notes = list(dict.fromkeys(one.why for row in found for one in row if one and one.why))
    lines = [line("", *table.columns.values()), "|---" * (len(table.columns) + 1) + "|"]
    for row, verdicts in zip(table.rows, found, strict=True):
        lines.append(line(row.name, *(shown(one, notes) for one in verdicts)))
    numbered = [f"{number}. {note}" for number, note in enumerate(notes, 1)]
    return "\n".join([f"## {table.title}", "", *lines, "", *numbered]) + "\n"


def line(*cells: str) -> str:
    """A line of a table."""
    return f"| {' | '.join(cells)} |"


def shown(found: Verdict | None, notes: list[str]) -> str:
    """The text of a cell, with the number of its note."""
    if found is None:
        return "-"
    return f"{found.word} <sup>{notes.index(found.why) + 1}</sup>" if found.why else found.word


def named_tests() -> str:
    """The tests of each row, with the columns that they are for."""
    lines = [TESTS]
    for table in TABLES:
        lines += [f"**{table.title}**", "", *(f"- {row.name}: {named(row.tests)}" for row in table.rows), ""]
    return "\n".join(lines)


def named(found: dict[str, str]) -> str:
    """The tests of a row, each once."""
    texts = []
    for test in dict.fromkeys(found.values()):
        kinds = [f"*{kind}*" for kind, other in found.items() if other == test and kind]
        texts.append(f"`{test}`" + (f" ({' and '.join(kinds)})" if kinds else ""))
    return ", ".join(texts)


def page(tables: Sequence[Table] = TABLES) -> str:
    """The whole page."""
    return "\n".join([head(), *map(section, tables), named_tests()]).rstrip() + "\n"
