"""Short texts that change with what results depend on: a model's weights, its inputs, and code."""

from tokenprune.fingerprint.values import fingerprint, same

__all__ = ["fingerprint", "same"]
