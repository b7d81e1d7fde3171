"""The record of a prefill: which tokens were kept, how long choosing them took, and what this saves."""

from tokenprune.recording.record import PrefillRecord, Report, StageResult, StageTokens, Targets
from tokenprune.recording.recording import Annotations, Recording

__all__ = ["Annotations", "PrefillRecord", "Recording", "Report", "StageResult", "StageTokens", "Targets"]
