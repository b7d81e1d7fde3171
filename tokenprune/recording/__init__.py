"""The record of a prefill: which tokens were kept, how long choosing them took, and what this saves."""

from tokenprune.recording.record import PrefillRecord, StageResult, StageTokens, Targets
from tokenprune.recording.recording import Annotations, Recording
from tokenprune.recording.report import Report

__all__ = ["Annotations", "PrefillRecord", "Recording", "Report", "StageResult", "StageTokens", "Targets"]
