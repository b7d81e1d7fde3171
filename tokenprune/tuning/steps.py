"""The progress of a tune over all its budgets."""

from collections.abc import Callable, Sequence

#: Called after every candidate and batch with (what was measured, steps done, steps in total).
Progress = Callable[[str, int, int], None]


def steps_of(progress: Progress | None, number: int, budgets: int, budget: str, names: Sequence[str]) -> Progress:
    """Turn the batches of one race into steps of a progress bar over all budgets; candidates that left count as done.

    Args:
        progress: The bar; None shows nothing.
        number: Which budget, from 0.
        budgets: Number of budgets.
        budget: The budget in a few words.
        names: The candidates of the race.
    """
    done = 0

    def show(name: str, batch: int, batches: int) -> None:
        nonlocal done
        if progress is not None:  # workers may be done with a later batch first
            done = max(done, (number * batches + batch) * len(names) + names.index(name) + 1)
            progress(f"{budget}: {name}" if budgets > 1 else name, done, budgets * batches * len(names))

    return show
