"""A method applied to a model: :func:`apply`, and the run that it returns."""

from tokenprune.run.apply import apply, check_method, choose_layers, verify_methods
from tokenprune.run.generate import generate
from tokenprune.run.handle import Run
from tokenprune.run.methods import chosen

__all__ = ["Run", "apply", "check_method", "choose_layers", "chosen", "generate", "verify_methods"]
