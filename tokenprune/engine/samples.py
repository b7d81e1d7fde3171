"""Sample ids, which tie random scores to a sample and not to its place in a batch."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from tokenprune.errors import ScoreError


class SampleCounter:
    """Numbers samples in the order in which a run sees them, over all threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._next = 0

    def number(self, batch: int, copies: int) -> tuple[int, ...]:
        """New ids for a batch in which ``generate`` repeated each sample ``copies`` times (beams, sequences)."""
        if copies < 1 or batch % copies:
            copies = 1
        with self._lock:
            start = self._next
            self._next += batch // copies
        return tuple(start + row // copies for row in range(batch))


def given_ids(ids: Sequence[int], batch: int) -> tuple[int, ...]:
    """The ids that the caller gave, for a batch that may repeat each sample.

    Raises:
        ScoreError: The batch is no multiple of them.
    """
    if not ids or batch % len(ids):
        raise ScoreError(f"{len(ids)} sample_ids for a batch of {batch}", "give one per sample")
    return tuple(i for i in ids for _ in range(batch // len(ids)))
