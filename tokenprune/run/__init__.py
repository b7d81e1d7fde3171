"""The result of a method applied to a model: which tokens were kept, and what this saves."""

from __future__ import annotations

from tokenprune.recording.record import Clock, PrefillRecord, StageResult, StageTokens
from tokenprune.recording.recording import Annotations, Recording
from tokenprune.recording.report import Report
from tokenprune.run.handle import Run

__all__ = [
    "Annotations",
    "Clock",
    "PrefillRecord",
    "Recording",
    "Report",
    "Run",
    "StageResult",
    "StageTokens",
]
