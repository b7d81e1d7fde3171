"""Print the contract matrix as a Markdown table: `python -m tests.support.oracle_table [families]`.

One row per family; the number is the worst difference between the engine's logits and the oracle's over all cells of
the family's row that have the column's value.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from typing import get_args

import torch
import transformers

import tokenprune as tp
from tests.support import matrix
from tests.support.matrix import Cell, Judged, Layer, Mode, run_cell
from tests.support.tiny import CASES

COLUMNS = (*get_args(Mode), *(f"layer {layer}" for layer in get_args(Layer)), "sdpa", "eager", "left", "ragged", "bf16")


def columns(cell: Cell) -> set[str]:
    """The columns that a cell counts in."""
    if cell.dtype == torch.bfloat16:
        return {"bf16"}
    return {cell.mode, f"layer {cell.layer}", cell.attention, cell.padding, cell.variant} & set(COLUMNS)


def judge(cell: Cell) -> Judged | str:
    """The result of a cell, "refused" or what went wrong."""
    try:
        return run_cell(cell)
    except tp.TokenPruneError:
        return "refused"
    except Exception as error:
        return f"{type(error).__name__}"


def show(results: list[Judged | str]) -> str:
    """One table cell: the worst difference, bold where it is too large; a word where nothing was measured."""
    if not results:
        return ""
    words = sorted({r for r in results if isinstance(r, str)})
    if words:
        return ", ".join(words)
    numbers = [r for r in results if isinstance(r, Judged)]
    worst = f"{max(r.worst for r in numbers):.0e}"
    return worst if all(r.worst <= r.allowed for r in numbers) else f"**{worst}**"


def row(family: str, cells: Iterable[Cell]) -> str:
    """A family's line."""
    results_by_column: defaultdict[str, list[Judged | str]] = defaultdict(list)
    count = 0
    for cell in cells:
        result, count = judge(cell), count + 1
        for column in columns(cell):
            results_by_column[column].append(result)
    name = f"**{family}**" if CASES[family].core else family
    return "| " + " | ".join([name, str(count), *(show(results_by_column[c]) for c in COLUMNS)]) + " |"


def main(families: list[str]) -> None:
    """Print the table of the given families, or of all."""
    torch.set_num_threads(1)
    print("# The engine against the oracle\n")
    print(
        f"transformers {transformers.__version__}, torch {torch.__version__}; tiny random models, logits of size 4-6."
    )
    print("Worst absolute difference of any logit of a kept token, in prefill and at every generated step;")
    print(f"allowed: 1e-5 (fp32) or {matrix.BF16:g} (bf16) times the largest logit; more is **bold**.")
    slack = ", ".join(f"{name} {case.slack:g}" for name, case in CASES.items() if case.slack > 1)
    print(f"Where attention is sharper or a recurrence sums in another order, that times a factor: {slack}.")
    print("Bold families are the ones the project names; bf16 is measured for these alone (elsewhere rounding may")
    print('choose another expert). "refused" is an error of ours that says why.\n')
    print("| family | cells | " + " | ".join(COLUMNS) + " |")
    print("|---|---|" + "---|" * len(COLUMNS))
    for family in families or CASES:
        cells = matrix.cells([family])
        bf16 = [
            replace(c, dtype=torch.bfloat16) for c in cells if CASES[family].core and c.mode in ("forward", "greedy")
        ]
        print(row(family, [*cells, *bf16]), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
