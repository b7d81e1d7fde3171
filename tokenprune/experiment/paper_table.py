"""The table of an experiment for a paper (LaTeX) and for other programs (CSV)."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence

from tokenprune.experiment.config import UNPRUNED
from tokenprune.experiment.method_name import is_random
from tokenprune.experiment.stats import Estimate
from tokenprune.experiment.summary import SeriesSummary

#: The rows of each result's table by the result's name; a single result may have an empty name.
Tables = Mapping[str, Sequence[SeriesSummary]]

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
}

#: The columns of the CSV file behind the result, method and budget: title with unit.
NUMBERS = (
    "accuracy_percent",
    "accuracy_low_percent",
    "accuracy_high_percent",
    "share_of_unpruned_percent",
    "minus_unpruned_points",
    "minus_unpruned_low_points",
    "minus_unpruned_high_points",
    "same_answer_percent",
    "same_answer_low_percent",
    "same_answer_high_percent",
    "kl_nats",
    "kl_low_nats",
    "kl_high_nats",
    "visual_tokens_after_last_stage",
    "layer_average_tokens",
    "flops_reduction_percent",
    "kv_cache_bytes",
    "prefill_time_ratio",
    "prefill_time_ratio_min",
    "prefill_time_ratio_max",
    "seeds",
)


def latex_table(tables: Tables, label_free: bool = False, share: bool = False) -> str:
    r"""A LaTeX table: a row per method, a column per budget, accuracy in percent with the half-width of its interval.

    In each column the best method is bold and the second underlined. Methods that show the same number share the place.
    The unpruned model, random choices and the upper bound ``oracle`` are references, and never marked. The table needs
    the package ``booktabs``.

    Args:
        tables: The rows of each result's table by its name; several become groups below each other.
        label_free: Whether scores are agreement with the unpruned model.
        share: Add a column per budget: the accuracy as a share of the unpruned model's.
    """
    budgets = list(dict.fromkeys(item.budget for rows in tables.values() for item in rows if item.budget))
    wide = 2 if share else 1
    among = " among the methods of one result" if len(tables) > 1 else ""
    quality = "Agreement with the unpruned model" if label_free else "Accuracy"
    lines = [
        "% needs \\usepackage{booktabs}",
        f"% {quality} in %, with the half-width of its 95 % interval. Bold: best of its column{among};"
        " underlined: second.",
        f"\\begin{{tabular}}{{l{'r' * wide * len(budgets)}}}",
        "\\toprule",
    ]
    if share:
        heads = [f"\\multicolumn{{2}}{{c}}{{{escaped(budget)}}}" for budget in budgets]
        rules = [f"\\cmidrule(lr){{{2 + 2 * number}-{3 + 2 * number}}}" for number in range(len(budgets))]
        lines += [_line("Method", *heads), "".join(rules), _line("", *["\\%", "\\% of unpruned"] * len(budgets))]
    else:
        lines += [_line("Method", *map(escaped, budgets))]
    for name, rows in tables.items():
        lines.append("\\midrule")
        if name:
            lines.append(f"\\multicolumn{{{1 + wide * len(budgets)}}}{{l}}{{\\textit{{{escaped(name)}}}}} \\\\")
        lines += _group(rows, budgets, share)
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}"]) + "\n"


def _group(rows: Sequence[SeriesSummary], budgets: Sequence[str], share: bool) -> list[str]:
    """The lines of one result: the unpruned model and other references, a rule, the methods."""
    found = {(item.method, item.budget): item for item in rows}
    methods = list(dict.fromkeys(item.method for item in rows if item.budget))
    first = [method for method in methods if is_reference(method)]
    own = sorted(method for method in methods if not is_reference(method))
    lines = []
    if (UNPRUNED, "") in found:
        text = _number(found[UNPRUNED, ""], "")
        lines.append(_line(UNPRUNED, f"\\multicolumn{{{len(budgets) * (2 if share else 1)}}}{{c}}{{{text}}}"))
    marks = {
        budget: _marks([found[method, budget] for method in own if (method, budget) in found]) for budget in budgets
    }
    for method in [*first, *own]:
        cells = []
        for budget in budgets:
            item = found.get((method, budget))
            mark = marks[budget].get(method, "") if method in own else ""
            cells.append("" if item is None else _number(item, mark))
            if share:
                cells.append("" if item is None or math.isnan(item.kept) else f"{100 * item.kept:.1f}")
        if own and method == own[0] and lines:
            lines.append("\\addlinespace")
        lines.append(_line(escaped(method), *cells))
    return lines


def _marks(items: Iterable[SeriesSummary]) -> dict[str, str]:
    """Method -> the command that marks it. What shows the same number has the same place."""
    shown = {item.method: f"{100 * item.accuracy.mean:.1f}" for item in items if math.isfinite(item.accuracy.mean)}
    best = sorted({float(text) for text in shown.values()}, reverse=True)[:2]
    commands = dict(zip(best, ("\\textbf", "\\underline"), strict=False))
    return {method: commands[float(text)] for method, text in shown.items() if float(text) in commands}


def _number(item: SeriesSummary, mark: str) -> str:
    mean, half = item.accuracy.mean, item.accuracy.half
    if not math.isfinite(mean):
        return ""
    text = f"{mark}{{{100 * mean:.1f}}}" if mark else f"{100 * mean:.1f}"
    return f"{text} {{\\scriptsize$\\pm$ {100 * half:.1f}}}" if math.isfinite(half) else text


def _line(*cells: str) -> str:
    # what follows the end of the line before must not look like its argument
    start = "{}" if cells[0].startswith(("[", "*")) else ""
    return start + " & ".join(cells) + " \\\\"


def escaped(text: str) -> str:
    """Text in which LaTeX finds no commands."""
    return "".join(ESCAPES.get(letter, letter) for letter in text)


def is_reference(method: str) -> bool:
    """Whether a row is what methods are compared with."""
    return method in (UNPRUNED, "oracle") or is_random(method)


def csv_table(tables: Tables) -> str:
    """All numbers as CSV: a row per result, method and budget. What is unknown is empty.

    Args:
        tables: The rows of each result's table by its name; the column ``results`` holds the names.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["results", "method", "budget", *NUMBERS])
    for name, rows in tables.items():
        for item in rows:
            writer.writerow([name, item.method, item.budget, *map(_cell, _numbers(item))])
    return out.getvalue()


def _numbers(item: SeriesSummary) -> list[float]:
    return [
        *_share(item.accuracy),
        100 * item.kept,
        *_interval(item.gain, 100),
        *_share(item.agreement),
        *_interval(item.divergence, 1),
        item.visual,
        item.average,
        100 * item.flops_reduction,
        item.kv_bytes,
        item.time_ratio,
        *item.time_spread,
        item.seeds,
    ]


def _share(estimate: Estimate) -> tuple[float, float, float]:
    """The same of a share in percent: its interval ends at 0 and 100."""
    mean, low, high = _interval(estimate, 100)
    return mean, max(low, 0.0) if math.isfinite(low) else low, min(high, 100.0) if math.isfinite(high) else high


def _interval(estimate: Estimate | None, factor: float) -> tuple[float, float, float]:
    """The mean, and where its interval begins and ends; NaN where unknown."""
    if estimate is None:
        return math.nan, math.nan, math.nan
    mean, half = factor * estimate.mean, factor * estimate.half
    return (mean, mean - half, mean + half) if math.isfinite(half) else (mean, math.nan, math.nan)


def _cell(number: float) -> str:
    return f"{number:.10g}" if math.isfinite(number) else ""
