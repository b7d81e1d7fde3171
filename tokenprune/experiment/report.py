"""The files of a report: Markdown, JSON, and where the extra ``report`` is installed a page and a picture."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from pathlib import Path

from tokenprune.experiment import examples
from tokenprune.experiment.numbers import OTHER_COST, ChosenLayers, Gain, Gains, Numbers
from tokenprune.experiment.page import numbers_page
from tokenprune.experiment.plot import accuracy_plot, charts_of
from tokenprune.experiment.results import Results
from tokenprune.experiment.rows import columns, format_row, markdown_cell
from tokenprune.experiment.runner import ExperimentResult
from tokenprune.report.extra import write_drawn


def markdown(result: ExperimentResult) -> str:
    """The report as Markdown: gates, main table, comparison with random, layers, accuracy per question type."""
    return _markdown(Numbers.of(result))


def _markdown(numbers: Numbers) -> str:
    names, sentences = columns(numbers.result), numbers.sentences
    out = [
        "# Results",
        "",
        *sentences,
        *([""] if sentences else []),
        "| " + " | ".join(names) + " |",
        "|" + "---|" * len(names),
    ]
    out += ["| " + " | ".join(format_row(item)) + " |" for item in numbers.summaries]
    out += ["", numbers.size]
    out += _against_random(numbers.gains)
    out += ["", "Layers:"]
    out += [layer_line(item) for item in numbers.layers]
    if numbers.types:
        out += ["", "Accuracy per question type, %:", "", *_accuracy_per_type(numbers)]
    return "\n".join(out) + "\n"


def layer_line(item: ChosenLayers) -> str:
    """Which layers were chosen, by which methods and why, as an item of a list."""
    return f"- before layer {', '.join(map(str, item.layers))} ({', '.join(item.methods)}): {item.reason}"


def _against_random(gains: Gains | None) -> list[str]:
    if gains is None:
        return []
    out = [
        "",
        "Points above random pruning on the same questions; **bold where random wins** beyond the interval. Compared is"
        " the random choice whose layer average is the nearest:",
        "",
        "| method | " + " | ".join(gains.budgets) + " | compared with |",
        "|---|" + "---|" * (len(gains.budgets) + 1),
    ]
    for method, row in gains.methods.items():
        cells = ["" if gain is None else _gain(gain) for gain in row]
        rivals = dict.fromkeys(gain.rival for gain in row if gain is not None)
        out.append(f"| {method} | " + " | ".join(cells) + f" | {', '.join(rivals)} |")
    return [*out, "", OTHER_COST] if gains.other_cost else out


def _gain(gain: Gain) -> str:
    """A gain as text; bold where random wins."""
    number, space, cost = str(gain).partition(" (†")
    return f"**{number}**{space}{cost}" if gain.random_wins else str(gain)


def _accuracy_per_type(numbers: Numbers) -> list[str]:
    types = " | ".join(map(markdown_cell, numbers.types))
    out = [f"| method | budget | {types} |", "|---|---|" + "---|" * len(numbers.types)]
    for item, per_type in zip(numbers.summaries, numbers.per_type, strict=True):
        shown = " | ".join("" if math.isnan(value) else f"{100 * value:.1f}" for value in per_type)
        out.append(f"| {item.method} | {item.budget} | {shown} |")
    return out


def write_report(result: ExperimentResult, folder: str | Path | None = None) -> list[Path]:
    """Write ``report.md``, ``summary.json`` and, with the extra ``report``, ``report.html`` and the plots.

    Args:
        result: The experiment.
        folder: Where to write; the experiment's own folder by default.

    Returns:
        The paths of the files.

    Warns:
        NotWrittenWarning: Packages of the extra are missing; the warning names the files that were not written.
    """
    results, numbers = Results(folder or result.folder), Numbers.of(result)
    written = [
        results.write("report.md", _markdown(numbers)),
        results.write_json("summary.json", [asdict(item) for item in numbers.summaries]),
    ]

    def page(path: Path) -> list[Path]:
        from tokenprune.report.html import render

        found, reason = examples.for_report(Results(result.folder))
        made = numbers_page(numbers, examples.with_answers(found, result.rows))
        if reason is not None:
            made = replace(made, notes=(*made.notes, f"There are no example pictures: {reason}"))
        return [results.write(path.name, render(made))]

    def plot(path: Path) -> list[Path]:
        return accuracy_plot(charts_of(numbers.summaries, result.label_free), path)

    return written + write_drawn({results.folder / "report.html": page, results.folder / "accuracy.png": plot})
