"""Tiny random multimodal models built from Config objects, offline, with matching inputs, for every family."""

from __future__ import annotations

from tests.support.tiny import (
    blip,
    candidates,
    gemma,
    glm,
    languages,
    llava,
    minicpm,
    newer,
    omni,
    others,
    qwen,
    towers,
)
from tests.support.tiny.core import TRANSFORMERS, Batch, TinyCase

MODULES = (llava, qwen, gemma, others, candidates, glm, omni, towers, blip, minicpm, newer, languages)
ALL_VERSIONS: dict[str, TinyCase] = {case.name: case for module in MODULES for case in module.CASES}
EVERY: dict[str, TinyCase] = {name: case for name, case in ALL_VERSIONS.items() if case.since <= TRANSFORMERS}
"""The families that the installed transformers has."""
UPSTREAM_FAULTS: dict[str, str] = (
    dict.fromkeys(("llama4", "llama4_tuned"), "has no attribute 'image_outputs'") if TRANSFORMERS == (5, 24) else {}
)
"""Families that the installed transformers cannot run unpruned, and what it says: see tests/support/test_tiny.py."""
CASES: dict[str, TinyCase] = {name: case for name, case in EVERY.items() if name not in UPSTREAM_FAULTS}
CORE: tuple[str, ...] = tuple(name for name, case in CASES.items() if case.core)

__all__ = ["ALL_VERSIONS", "CASES", "CORE", "EVERY", "UPSTREAM_FAULTS", "Batch", "TinyCase"]
