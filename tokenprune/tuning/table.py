"""The ranked table as text."""

from __future__ import annotations

import math

from tokenprune.engine.trials.race import Goal
from tokenprune.tuning.ranking import Ranked
from tokenprune.tuning.words import LOSSES

#: The columns of the table.
COLUMNS = (
    "candidate",
    "before layer",
    "loss",
    "95 % interval",
    "minus the best",
    "agreement %",
    "KL, nats",
    "samples",
    "layer average",
    "FLOPs",
)


def cells(row: Ranked, goal: Goal) -> tuple[str, ...]:
    """A row of the table, in the order of :data:`COLUMNS`.

    Args:
        row: The candidate.
        goal: What the tune makes small; the loss and its differences are in its unit.
    """
    factor = LOSSES[goal][1]
    loss, difference = row.loss, row.difference
    apart = f"{factor * difference.mean:+.3g} [{factor * difference.low:+.3g}, {factor * difference.high:+.3g}]"
    return (
        row.name,
        layers_of(row),
        f"{factor * loss.mean:.4g}",
        f"{factor * loss.low:.3g} to {factor * loss.high:.3g}",
        "" if difference.mean == difference.low == difference.high == 0 else apart,
        f"{100 * row.agreement.mean:.1f}",
        f"{row.divergence.mean:.4f}",
        str(row.seen) if row.left is None else f"left after {row.left}",
        f"{row.average:.1f}",
        "unknown" if math.isnan(row.flops) else f"-{100 * (1 - row.flops):.1f} %",
    )


def layers_of(row: Ranked) -> str:
    """The layers before which a candidate prunes."""
    layers: tuple[int, ...] = getattr(row.method.layers, "layers", ())
    return ", ".join(map(str, layers))
