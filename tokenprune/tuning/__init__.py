"""Tuning: races of candidates against the unpruned model, for a model, data and a budget."""

from tokenprune.tuning.config import TuneConfig
from tokenprune.tuning.result import TuneResult
from tokenprune.tuning.tuner import run_tune, tune

__all__ = ["TuneConfig", "TuneResult", "run_tune", "tune"]
