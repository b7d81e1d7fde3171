"""Experiments: every method with every budget on a task, resumable, with confidence intervals."""

from tokenprune.experiment.config import ExperimentConfig
from tokenprune.experiment.report import markdown, write_report
from tokenprune.experiment.result import ExperimentResult
from tokenprune.experiment.runner import run_experiment
from tokenprune.experiment.summary import summarise

__all__ = ["ExperimentConfig", "ExperimentResult", "markdown", "run_experiment", "summarise", "write_report"]
