"""What `/metrics` of a server says about pruning: visual tokens of requests, before and after, by method.

The histograms are made in the process that reads requests, which is the one that answers `/metrics`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

from prometheus_client import Histogram
from vllm.multimodal.processing import PromptUpdateDetails

#: Bounds of the histograms' buckets, in tokens.
BUCKETS = tuple(2**power for power in range(4, 17))


@dataclass
class Shortened(PromptUpdateDetails):  # type: ignore[misc]
    """The placeholders of a picture or video, and what they were made of.

    Attributes:
        method: The name of the method.
        tokens: Its visual tokens.
        kept: Those that are kept.
    """

    method: str = ""
    tokens: int = 0
    kept: int = 0


@cache
def histograms() -> tuple[Histogram, Histogram]:
    """Visual tokens per request before and after; made once per process, as Prometheus wants it."""
    texts = {"before": "Visual tokens of a request", "kept": "Visual tokens of a request that the language model gets"}
    before, kept = (
        Histogram(f"tokenprune:request_visual_tokens_{end}", text, labelnames=["method"], buckets=BUCKETS)
        for end, text in texts.items()
    )
    return before, kept


def count(items: Iterable[Shortened]) -> tuple[int, int]:
    """Count a request.

    Args:
        items: Its pictures and videos.

    Returns:
        Its visual tokens, and those that are kept.
    """
    found = list(items)
    sums = sum(item.tokens for item in found), sum(item.kept for item in found)
    for histogram, total in zip(histograms(), sums, strict=True):
        histogram.labels(found[0].method).observe(total)
    return sums
