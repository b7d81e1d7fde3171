"""The progress of a tune over all its budgets."""

from __future__ import annotations

from collections.abc import Callable, Sequence

#: Called after every candidate and batch with (what was measured, steps done, steps in total).
Progress = Callable[[str, int, int], None]


class Steps:
    """Turns the batches of a race into the steps of one progress bar over all budgets.

    Args:
        progress: The bar.
        number: Which budget, from 0.
        budgets: Number of budgets.
    """

    def __init__(self, progress: Progress, number: int, budgets: int) -> None:
        self._progress, self._number, self._budgets = progress, number, budgets
        self._places: dict[str, int] = {}
        self._slug = ""

    def begin(self, slug: str, names: Sequence[str], batches: int) -> None:
        """Say what the race will run."""
        self._slug, self._places = slug, {name: place for place, name in enumerate(names)}
        self._per_budget = len(names) * batches

    def __call__(self, name: str, batch: int, batches: int) -> None:
        """A candidate has seen a batch. Candidates that left count as done."""
        done = batch * len(self._places) + self._places[name] + 1
        if self._budgets > 1:
            name = f"{self._slug}: {name}"
        self._progress(name, self._number * self._per_budget + done, self._budgets * self._per_budget)
