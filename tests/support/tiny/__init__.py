"""Tiny random multimodal models built from Config objects, offline, with matching inputs, for every family."""

from __future__ import annotations

from tests.support.tiny import candidates, gemma, languages, llava, others, qwen
from tests.support.tiny.core import TRANSFORMERS, Batch, TinyCase

EVERY: dict[str, TinyCase] = {
    case.name: case
    for case in [*llava.CASES, *qwen.CASES, *gemma.CASES, *others.CASES, *candidates.CASES, *languages.CASES]
}
UPSTREAM_FAULTS: dict[str, str] = (
    dict.fromkeys(("llama4", "llama4_tuned"), "has no attribute 'image_outputs'") if TRANSFORMERS == (5, 24) else {}
)
"""Families that the installed transformers cannot run unpruned, and what it says: see tests/support/test_tiny.py."""
CASES: dict[str, TinyCase] = {name: case for name, case in EVERY.items() if name not in UPSTREAM_FAULTS}
CORE: tuple[str, ...] = tuple(name for name, case in CASES.items() if case.core)

__all__ = ["CASES", "CORE", "EVERY", "UPSTREAM_FAULTS", "Batch", "TinyCase"]
