"""Training-free visual token pruning of multimodal LLMs on one exact engine."""

from __future__ import annotations

from tokenprune import ops
from tokenprune.config import Method
from tokenprune.engine import measure_entropy, observe
from tokenprune.errors import TokenPruneError
from tokenprune.experiment import ExperimentConfig, run_experiment
from tokenprune.experiment.part import Part
from tokenprune.methods.named import list_methods, load_method
from tokenprune.pictures.describe import describe
from tokenprune.pictures.draw import draw
from tokenprune.pictures.look import Look
from tokenprune.recording import Report, StageResult
from tokenprune.run import Run, apply, choose_layers, generate
from tokenprune.tuning import TuneConfig, TuneResult, run_tune, tune
from tokenprune.version import __version__

__all__ = [
    "ExperimentConfig",
    "Look",
    "Method",
    "Part",
    "Report",
    "Run",
    "StageResult",
    "TokenPruneError",
    "TuneConfig",
    "TuneResult",
    "__version__",
    "apply",
    "choose_layers",
    "describe",
    "draw",
    "generate",
    "list_methods",
    "load_method",
    "measure_entropy",
    "observe",
    "ops",
    "run_experiment",
    "run_tune",
    "tune",
]
