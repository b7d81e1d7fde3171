"""The end of `make demo`: what its two halves say together, and how to use the method that they found.

    python examples/demo.py

It reads what `tokenprune run examples/demo.yaml` and `tokenprune tune examples/tune-demo.yaml` wrote.
"""

from __future__ import annotations

import json
from pathlib import Path

import tokenprune as tp

RUN, TUNED = Path("results/demo"), Path("results/tune-demo/tuned.yaml")


def sentences(run: Path, tuned: Path) -> list[str]:
    """The sentences.

    Args:
        run: Folder of the experiment.
        tuned: The method that the tune wrote.
    """
    method = tp.load_method(tuned)
    share = f"{100 * method.budget.ratio:g} % of the visual tokens, averaged over all layers"
    rows = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    pruned = (row for row in rows if row["budget"] and row["method"] != "oracle")
    scores = {row["method"]: 100 * row["accuracy"]["mean"] for row in pruned}
    best = max(scores, key=lambda name: scores[name])
    found = f"the tune found {method.label}, which scored {scores[method.label]:.0f} %"
    if scores[method.label] == scores[best]:
        found = f"the tune found the same: {method.label}"
    return [
        f"With answers ({run}): of {len(scores)} methods with {share}, {best} scored most: {scores[best]:.0f} %.",
        f"Without answers ({tuned.parent}): of the same methods, with the same budget, on other pictures, {found}.",
        f'Use it: tp.apply(model, tp.load_method("{tuned}")), or --method {tuned} with `tokenprune look` and `bench`.',
        f"Look at it: {run / 'report.html'} and {tuned.parent / 'report.html'}",
    ]


if __name__ == "__main__":
    print("\n".join(sentences(RUN, TUNED)))
