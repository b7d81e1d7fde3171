"""Pure tensor functions; none of them depends on a model."""

from __future__ import annotations

from tokenprune.ops.entropy import matrix_entropy, state_entropy
from tokenprune.ops.topk import apportion, topk_by_group

__all__ = ["apportion", "matrix_entropy", "state_entropy", "topk_by_group"]
