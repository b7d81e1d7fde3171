r"""Tables for papers: a row per method, columns per budget. They need the LaTeX package ``booktabs``."""

import math
from collections.abc import Callable, Mapping, Sequence

from tokenprune.tables.table import Cell, Heading, Row, Table

#: What LaTeX reads as a command -> how it is written.
ESCAPES = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
}
EMPTY = Cell("", math.nan)


def text(tables: Mapping[str, Table], is_reference: Callable[[str], bool], comments: Sequence[str] = ()) -> str:
    r"""A LaTeX table of the rows' methods and budgets, with the columns of numbers that are meant for papers.

    Of the methods that are no references the best of the first column is bold and the second underlined, budget by
    budget. Methods that show the same number share the place. A row without a budget, the unpruned model, stands above
    the others, across all budgets.

    Args:
        tables: The tables by name; several become groups below each other, a single one may have an empty name.
        is_reference: Whether methods are compared with a method, which then stands first and is never marked.
        comments: Lines that a reader of the file must know.
    """
    budgets = list(dict.fromkeys(row.budget for table in tables.values() for row in table.rows if row.budget))
    titles = list(dict.fromkeys(item.title for table in tables.values() for item in table.columns if item.paper))
    wide = len(titles)
    lines = [*(f"% {comment}" for comment in ("needs \\usepackage{booktabs}", *comments))]
    lines += [f"\\begin{{tabular}}{{l{'r' * wide * len(budgets)}}}", "\\toprule"]
    if wide == 1:
        heads = [escaped(budget).replace(", ", r",\\") for budget in budgets]  # columns of numbers are narrow
        lines.append(_line("Method", *(rf"\shortstack[r]{{{head}}}" if r"\\" in head else head for head in heads)))
    else:
        heads = [f"\\multicolumn{{{wide}}}{{c}}{{{escaped(budget)}}}" for budget in budgets]
        ends = [(2 + wide * place, 1 + wide * (place + 1)) for place in range(len(budgets))]
        rules = "".join(f"\\cmidrule(lr){{{first}-{last}}}" for first, last in ends)
        lines += [_line("Method", *heads), rules, _line("", *map(escaped, titles * len(budgets)))]
    for name, table in tables.items():
        lines.append("\\midrule")
        if name:
            lines.append(f"\\multicolumn{{{1 + wide * len(budgets)}}}{{l}}{{\\textit{{{escaped(name)}}}}} \\\\")
        lines += _group(table, budgets, titles, is_reference)
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}"]) + "\n"


def _group(
    table: Table, budgets: Sequence[str], titles: Sequence[str], is_reference: Callable[[str], bool]
) -> list[str]:
    """The lines of one table: rows across all budgets, other references, a rule, the methods."""
    rows = {(row.method, row.budget): _cells(table.columns, row, titles) for row in table.rows}
    methods = list(dict.fromkeys(row.method for row in table.rows if row.budget))
    first = [method for method in methods if is_reference(method)]
    own = sorted(method for method in methods if not is_reference(method))
    marks = {
        budget: _marks({name: rows[name, budget][0] for name in own if (name, budget) in rows}) for budget in budgets
    }
    wide = len(titles) * len(budgets)
    start, end = (f"\\multicolumn{{{wide}}}{{c}}{{", "}") if wide > 1 else ("", "")
    lines = [
        _line(escaped(method), start + _written(cells[0]) + end)
        for (method, budget), cells in rows.items()
        if not budget
    ]
    for method in [*first, *own]:
        if own and method == own[0] and lines:
            lines.append("\\addlinespace")
        shown = []
        for budget in budgets:
            cells = rows.get((method, budget), [EMPTY] * len(titles))
            shown += [_written(cells[0], marks[budget].get(method, "")), *map(_written, cells[1:])]
        lines.append(_line(escaped(method), *shown))
    return lines


def _cells(columns: Sequence[Heading], row: Row, titles: Sequence[str]) -> list[Cell]:
    """The cells of a row under some titles; empty where it lacks one."""
    found = dict(zip((column.title for column in columns), row.cells, strict=True))
    return [found.get(title, EMPTY) for title in titles]


def _marks(cells: Mapping[str, Cell]) -> dict[str, str]:
    """Method -> the command that marks it. Methods that show the same number have the same place."""
    shown = {method: float(cell.text.partition(" ")[0]) for method, cell in cells.items() if _known(cell)}
    best = sorted(set(shown.values()), reverse=True)[:2]
    commands = dict(zip(best, ("\\textbf", "\\underline"), strict=False))
    return {method: commands[number] for method, number in shown.items() if number in commands}


def _known(cell: Cell) -> bool:
    return cell.value is None or math.isfinite(cell.value)


def _written(cell: Cell, mark: str = "") -> str:
    """A cell: a number, marked if it is to be, and its interval in small letters; empty where it is unknown."""
    if not _known(cell):
        return ""
    mean, _, interval = escaped(cell.text).partition(" ")
    if not interval.startswith(("$", "[")):
        mean, interval = escaped(cell.text), ""
    shown = f"{mark}{{{mean}}}" if mark else mean
    space = " " if interval.startswith("[") else ""
    return f"{shown} {{\\scriptsize{space}{interval}}}" if interval else shown


def _line(*cells: str) -> str:
    # what follows the end of the line before must not look like its argument
    start = "{}" if cells[0].startswith(("[", "*")) else ""
    return start + " & ".join(cells) + " \\\\"


def escaped(text: str) -> str:
    """Text in which LaTeX finds no commands."""
    return "".join(ESCAPES.get(letter, letter) for letter in text)
