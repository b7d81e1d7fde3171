"""Training-free visual token pruning of multimodal LLMs on one exact engine.

The names below are imported when they are first used: the command line answers at once, and torch takes seconds.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from tokenprune.errors import TokenPruneError
from tokenprune.version import __version__

if TYPE_CHECKING:
    from tokenprune import ops
    from tokenprune.config import Method
    from tokenprune.engine import measure_entropy, observe
    from tokenprune.experiment import ExperimentConfig, run_experiment
    from tokenprune.experiment.part import Part
    from tokenprune.methods.named import list_methods, load_method
    from tokenprune.pictures.describe import describe
    from tokenprune.pictures.draw import draw
    from tokenprune.pictures.look import Look
    from tokenprune.recording import Report, StageResult
    from tokenprune.run import Run, apply, choose_layers, generate
    from tokenprune.tuning import TuneConfig, TuneResult, run_tune, tune

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

#: Where each name stands; the rest of :data:`__all__` is here.
_MODULES = {
    "tokenprune.config": ("Method",),
    "tokenprune.engine": ("measure_entropy", "observe"),
    "tokenprune.experiment": ("ExperimentConfig", "run_experiment"),
    "tokenprune.experiment.part": ("Part",),
    "tokenprune.methods.named": ("list_methods", "load_method"),
    "tokenprune.pictures.describe": ("describe",),
    "tokenprune.pictures.draw": ("draw",),
    "tokenprune.pictures.look": ("Look",),
    "tokenprune.recording": ("Report", "StageResult"),
    "tokenprune.run": ("Run", "apply", "choose_layers", "generate"),
    "tokenprune.tuning": ("TuneConfig", "TuneResult", "run_tune", "tune"),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name == "ops":
        return importlib.import_module("tokenprune.ops")
    if name not in _HOME:
        raise AttributeError(f"module 'tokenprune' has no attribute {name!r}")
    found = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
