"""Tiny random multimodal models built from Config objects, offline, with matching inputs, for every family."""

from __future__ import annotations

from tests.support.tiny import candidates, gemma, languages, llava, others, qwen
from tests.support.tiny.core import Batch, TinyCase

CASES: dict[str, TinyCase] = {
    case.name: case
    for case in [*llava.CASES, *qwen.CASES, *gemma.CASES, *others.CASES, *candidates.CASES, *languages.CASES]
}
CORE: tuple[str, ...] = tuple(name for name, case in CASES.items() if case.core)

__all__ = ["CASES", "CORE", "Batch", "TinyCase"]
