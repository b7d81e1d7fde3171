"""Equal to ``tokenprune.apply`` on transformers: ids, and log-probabilities within 1e-5 in float32."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from checkpoints import FAMILIES, QWEN_SHOWN
from equality import Answer, Reference, answers, engine, prompts

#: A step of another order of sums; the largest that was seen is 4e-6.
TOLERANCE = 1e-5
METHODS = ("divprune", "diversity", "entropyprune-tower", "holov", "mmr", "otprune", "prunesid", "scope", "svd-prune")
METHODS += ("tome", "vision-attention", "visionzip", "vispruner")


def close(one: Answer, other: Answer) -> bool:
    """Whether two answers are the same tokens with the same log-probabilities."""
    pairs = zip(one.log_probabilities, other.log_probabilities, strict=True)
    return one.ids == other.ids and all(math.isclose(x, y, rel_tol=0, abs_tol=TOLERANCE) for x, y in pairs)
