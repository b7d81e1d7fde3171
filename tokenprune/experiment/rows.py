"""The main table as text: its columns, and a row of it."""

from __future__ import annotations

import math

from tokenprune.experiment.config import UNPRUNED
from tokenprune.experiment.runner import ExperimentResult
from tokenprune.experiment.summary import SeriesSummary


def columns(result: ExperimentResult) -> list[str]:
    """The columns of the main table."""
    names = [
        "method",
        "budget",
        "agreement %" if result.label_free else "accuracy %",
        "% of unpruned",
        "minus unpruned",
        "same answer %",
        "visual tokens",
        "layer average",
        "FLOPs",
        "KV cache",
        "prefill time",
    ]
    if any(item.divergences for item in result.answers.series.values()):
        names.insert(names.index("same answer %") + 1, "KL, nats")
    return names


def format_row(summary: SeriesSummary) -> list[str]:
    """One row of the table as text, in the order of :func:`columns`."""
    unpruned = summary.method == UNPRUNED
    name = summary.method + (f" ({summary.seeds} seeds)" if summary.seeds > 1 else "")
    saved = "unknown" if math.isnan(summary.flops_reduction) else f"-{100 * summary.flops_reduction:.1f} %"
    low, high = summary.time_spread
    spread = "" if math.isnan(low) else f" ({low:.2f}-{high:.2f})"
    divergence = summary.divergence
    return [
        name,
        summary.budget,
        str(summary.accuracy),
        "unknown" if math.isnan(summary.kept) else f"{100 * summary.kept:.1f}",
        "" if unpruned else f"{100 * summary.gain.mean:+.1f} ± {100 * summary.gain.half:.1f}",
        "" if unpruned else f"{100 * summary.agreement.mean:.1f}",
        *([] if divergence is None else ["" if unpruned else f"{divergence.mean:.4f} ± {divergence.half:.4f}"]),
        f"{summary.visual:.1f}",
        f"{summary.average:.1f}",
        "" if unpruned else saved,
        "unknown" if math.isnan(summary.kv_bytes) else f"{summary.kv_bytes / 2**20:.2f} MiB",
        "" if math.isnan(summary.time_ratio) else "1" if unpruned else f"x {summary.time_ratio:.2f}{spread}",
    ]


def markdown_cell(text: str) -> str:
    """A text that stays in one cell of a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|")
