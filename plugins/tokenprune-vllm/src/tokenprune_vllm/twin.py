"""tokenprune's adapter for a model that vLLM runs: made from the same config, on a model without weights.

So what a family's tokens are, where they lie and how the tower's patches become tokens is said once, in tokenprune's
adapters. vLLM only says where its own tower's layers are.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForImageTextToText

from tokenprune import Method
from tokenprune.adapters import adapter_for
from tokenprune.authoring import Adapter, LayerError, UnsupportedFeatureError
from tokenprune.engine.plan import Plan
from tokenprune.engine.renumber import smallest_window


class Twin:
    """What tokenprune knows of a model that vLLM runs.

    Args:
        config: The config of the checkpoint.

    Attributes:
        adapter: The family's adapter.

    Raises:
        UnsupportedModelError: There is none for the family.
    """

    def __init__(self, config: Any) -> None:
        with torch.device("meta"):
            model = AutoModelForImageTextToText.from_config(config)
        self.adapter: Adapter = adapter_for(model.eval())

    def check(self, method: Method, longest: int, tower: bool = True) -> None:
        """Refuse a method that the model cannot be pruned with, in the words of ``tokenprune.apply``.

        Args:
            method: The method.
            longest: Tokens of a prompt and its answer at most.
            tower: Whether methods may read the vision tower.

        Raises:
            TokenPruneError: It cannot; or vLLM does not run a layer of the vision tower that the method reads; or
                vLLM would count the windows of sliding attention otherwise than the model does.
        """
        Plan.of(method, (0,), self.adapter)
        if method.pruner.vision_layers and not tower:
            raise UnsupportedFeatureError(
                "the vision tower is divided between devices, and the method reads it",
                "use a method that reads the features only, or one device per model",
            )
        window = smallest_window(self.adapter, 0)
        if window is not None and method.positions == "original" and longest > window:
            raise UnsupportedFeatureError(
                f"the model has layers with a window of {window} tokens, in which vLLM counts kept tokens, and original"
                " positions count all",
                f"use positions: renumbered, or a max_model_len of at most {window}",
            )
        for layer in sorted(method.pruner.vision_layers):
            depth, layers = self.adapter.tower_depth(), self.adapter.tower_layers or 0
            if layer % layers >= depth:
                raise LayerError(
                    f"the method reads layer {layer} of the vision tower, and vLLM does not run it: the model takes"
                    f" its features from layer {depth - 1 - layers}",
                    f"read layer {depth - 1 - layers} or an earlier one: serve the YAML file of such a method",
                )


#: Twins by their configs: vLLM makes several processors and one model of a config in a process.
_TWINS: dict[str, Twin] = {}


def twin_of(config: Any) -> Twin:
    """The twin of a model; see :class:`Twin`. It is made once per process and config."""
    key = f"{type(config).__name__} {config.to_json_string(use_diff=False)}"
    if key not in _TWINS:
        _TWINS[key] = Twin(config)
    return _TWINS[key]
