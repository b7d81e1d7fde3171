"""How many visual tokens show a digit (`python benchmarks/foreground_tokens.py`, prints markdown).

The pictures and clips are those of the tables (`benchmarks/tables.yaml`), and as many again. With a budget below this
number even the oracle drops foreground.
"""

from __future__ import annotations

from statistics import fmean

from tokenprune.tasks.base import Task, foreground_tokens
from tokenprune_embedded.tasks.digits import Digits
from tokenprune_embedded.tasks.moving_digits import MovingDigits

TASKS: dict[str, tuple[Task, int]] = {
    "pictures": (Digits(split="test", questions=1000), 12),
    "clips": (MovingDigits(split="test", questions=1002), 7),
}


def main() -> None:
    """Print the table."""
    print("| task | pictures | visual tokens | show a digit: mean | fewest | most |\n|---|---|---|---|---|---|")
    for name, (task, side) in TASKS.items():
        shares = {sample.group: foreground_tokens(sample, side, side) for sample in task.samples()}
        counts = [int((share > 0).sum()) for share in shares.values()]
        width = len(next(iter(shares.values())))
        print(f"| {name} | {len(counts)} | {width} | {fmean(counts):.1f} | {min(counts)} | {max(counts)} |")


if __name__ == "__main__":
    main()
