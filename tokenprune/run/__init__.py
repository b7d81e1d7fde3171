"""The result of a method applied to a model: which tokens were kept, and what this saves."""

from __future__ import annotations

from tokenprune.run.handle import Run
from tokenprune.run.record import PrefillRecord, StageResult, StageTokens
from tokenprune.run.recording import Annotations, Recording
from tokenprune.run.report import Report

__all__ = [
    "Annotations",
    "PrefillRecord",
    "Recording",
    "Report",
    "Run",
    "StageResult",
    "StageTokens",
]
