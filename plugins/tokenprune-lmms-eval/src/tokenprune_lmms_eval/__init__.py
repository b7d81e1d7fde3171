"""tokenprune in lmms-eval: ``lmms-eval --model tokenprune --model_args pretrained=...,method=...``.

Nothing heavy is imported here: lmms-eval loads every plugin whenever it starts, and one that fails to load leaves a
single warning.
"""

from __future__ import annotations

from typing import Any


def manifest() -> Any:
    """What lmms-eval reads from the entry point: the model's name, and where its classes are."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(
        "tokenprune",
        chat_class_path="tokenprune_lmms_eval.model.TokenPrune",
        simple_class_path="tokenprune_lmms_eval.model.TokenPruneSimple",
    )
