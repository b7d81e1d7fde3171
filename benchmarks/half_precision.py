"""What half precision does to the selections of methods whose published code computes cosines in the model's dtype.

    python benchmarks/half_precision.py > benchmarks/results/half_precision.md

The authors' way (`selection_literal.py`) runs on the same seeded features in float64 and in a smaller dtype. The table
shows the Jaccard index of the two sets of kept tokens: the median of the seeds and the range. Ours computes these
cosines in float32, whatever the model's dtype.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

import selection_literal as literal
import torch
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SEEDS, TOKENS, WIDTH, FRAMES = 7, 576, 1024, 8


def independent(noise: torch.Generator) -> Tensor:
    """Features that have nothing in common, ``[tokens, width]``."""
    return torch.randn(TOKENS, WIDTH, generator=noise, dtype=torch.float64)


def clusters(noise: torch.Generator) -> Tensor:
    """Features around 24 centres."""
    centres = torch.randn(24, WIDTH, generator=noise, dtype=torch.float64)
    return centres.repeat(TOKENS // 24, 1) + 0.3 * independent(noise)


def still(noise: torch.Generator) -> Tensor:
    """A still scene: the frames of a video differ by a hundredth."""
    frame = torch.randn(TOKENS // FRAMES, WIDTH, generator=noise, dtype=torch.float64)
    return frame.repeat(FRAMES, 1) + 0.01 * independent(noise)


def vispruner(keep: int) -> Callable[[Tensor, Tensor], Tensor]:
    """Half of the tokens by attention, the rest by cosines."""
    return lambda states, attention: literal.vispruner(states, attention, keep)


def divprune(keep: int) -> Callable[[Tensor, Tensor], Tensor]:
    """Max-min cosine distance."""
    return lambda states, attention: literal.divprune(states, keep)


def evs(states: Tensor, attention: Tensor) -> Tensor:
    """Cosines to the frame before; a quarter is kept."""
    return literal.evs(states, FRAMES, 0.75)


ROWS: list[tuple[str, str, Callable[[torch.Generator], Tensor], Callable[[Tensor, Tensor], Tensor]]] = [
    ("vispruner, 64 kept", "independent", independent, vispruner(64)),
    ("vispruner, 192 kept", "independent", independent, vispruner(192)),
    ("vispruner, 192 kept", "clusters", clusters, vispruner(192)),
    ("divprune, 56 kept", "independent", independent, divprune(56)),
    ("divprune, 56 kept", "clusters", clusters, divprune(56)),
    ("divprune, 192 kept", "clusters", clusters, divprune(192)),
    ("evs, 144 kept", "still scene", still, evs),
]


def jaccard(one: Tensor, other: Tensor) -> float:
    """Of two sets of kept tokens."""
    first, second = set(one.flatten().tolist()), set(other.flatten().tolist())
    return len(first & second) / len(first | second)


def main() -> None:
    """Print the table."""
    print(
        f"torch {torch.__version__}, CPU; {TOKENS} tokens of {WIDTH} features, {SEEDS} seeds: median (lowest-highest)\n"
    )
    names = [str(dtype).removeprefix("torch.") for dtype in DTYPES]
    print(f"| Method | Features | {' | '.join(names)} |")
    print(f"|---|---|{'---|' * len(names)}")
    for method, kind, make, select in ROWS:
        found: dict[torch.dtype, list[float]] = {dtype: [] for dtype in DTYPES}
        for seed in range(SEEDS):
            noise = torch.Generator().manual_seed(seed)
            states = make(noise)
            attention = torch.randn(TOKENS, generator=noise, dtype=torch.float64).softmax(0)
            exact = select(states, attention)
            for dtype in DTYPES:
                found[dtype].append(jaccard(select(states.to(dtype), attention), exact))
        cells = [f"{statistics.median(x):.2f} ({min(x):.2f}-{max(x):.2f})" for x in found.values()]
        print(f"| {method} | {kind} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
