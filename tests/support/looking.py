"""A pruner that shows what it saw."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from tokenprune.pruners.base import Selection
from tokenprune.pruners.topk import TopK
from tokenprune.signals.context import PruneContext

Seen = TypeVar("Seen")


def looking(scorer: Any, look: Callable[[PruneContext], Seen]) -> tuple[TopK, list[Seen]]:
    """A `topk` pruner with a scorer, and the list of what `look` found at every stage that it pruned.

    Args:
        scorer: A scorer, or its config.
        look: Reads a context while the model runs.
    """
    seen: list[Seen] = []

    class Looks(TopK):
        @property
        def needs(self) -> frozenset[str]:
            return super().needs | {"grid", "sample_ids", "text"}

        def select(self, ctx: PruneContext) -> Selection:
            seen.append(look(ctx))
            return super().select(ctx)

    return Looks(scorer=scorer), seen
