"""Which method is best for a model, for data and for a budget: races of candidates against the unpruned model."""

from __future__ import annotations

from tokenprune.tuning.config import TuneConfig
from tokenprune.tuning.result import TuneResult
from tokenprune.tuning.tuner import run_tune, tune

__all__ = ["TuneConfig", "TuneResult", "run_tune", "tune"]
