"""Short texts that change with what results depend on: a model's weights, its inputs, and code."""

from __future__ import annotations

from tokenprune.fingerprint.values import fingerprint, same

__all__ = ["fingerprint", "same"]
