"""Training-free visual token pruning of multimodal LLMs on one exact engine."""

from __future__ import annotations

from tokenprune import ops
from tokenprune.config import Method
from tokenprune.engine import observe
from tokenprune.errors import TokenPruneError
from tokenprune.experiment import ExperimentConfig, run_experiment
from tokenprune.methods.named import list_methods, load_method
from tokenprune.pictures.draw import draw
from tokenprune.pictures.look import Look
from tokenprune.recording import Report, StageResult
from tokenprune.run import Run, apply
from tokenprune.tuning import TuneConfig, TuneResult, run_tune, tune
from tokenprune.version import __version__

__all__ = [
    "ExperimentConfig",
    "Look",
    "Method",
    "Report",
    "Run",
    "StageResult",
    "TokenPruneError",
    "TuneConfig",
    "TuneResult",
    "__version__",
    "apply",
    "draw",
    "list_methods",
    "load_method",
    "observe",
    "ops",
    "run_experiment",
    "run_tune",
    "tune",
]
