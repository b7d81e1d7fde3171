"""tokenprune's adapter for a model that vLLM runs: made from the same config, on a model without weights.

So what a family's tokens are, where they lie and how the tower's patches become tokens is said once, in tokenprune's
adapters. vLLM only says where its own tower's layers are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText

from tokenprune import Method
from tokenprune.adapters import adapter_for
from tokenprune.authoring import (
    Adapter,
    BudgetError,
    ConfigError,
    ImageVideoAdapter,
    LayerError,
    Modality,
    UnsupportedFeatureError,
)
from tokenprune.engine.plan import Plan
from tokenprune.engine.renumber import smallest_window
from tokenprune.ops.topk import apportion


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

    def token(self, kind: Modality) -> int:
        """The id that stands for a visual token of a picture or video."""
        known = self.adapter.placeholder_ids(kind) if isinstance(self.adapter, ImageVideoAdapter) else ()
        return (known or self.adapter.visual_ids)[0]

    def images(self, call: Mapping[str, Any]) -> tuple[list[int], Tensor | None]:
        """The images that a picture or video is to tokenprune: one, or one per frame.

        Args:
            call: The arguments with which transformers would get it alone: ``input_ids`` long ``[1, seq]``, grids.

        Returns:
            Visual tokens of each image; and (frame, row, column) of each visual token, long ``[tokens, 3]``, None where
            the family has no grid. On the device of ``input_ids``.
        """
        layout = self.adapter.locate(call)
        assert layout is not None  # there are ids
        mask, grid = layout.mask[0], self.adapter.grid(call, layout)
        return layout.groups[0][mask].bincount().tolist(), None if grid is None else grid[0][mask]

    @staticmethod
    def quotas(kept: int, sizes: list[int]) -> list[int]:
        """Tokens to keep of each image, as ``tokenprune.apply`` divides a number between the images of a prompt."""
        return apportion(kept, sizes)

    def check_item(self, method: Method, kept: int, call: Mapping[str, Any]) -> None:
        """Refuse a video, or a picture of several images, that a method cannot prune, before the vision tower runs.

        Args:
            method: A method that can be served.
            kept: Visual tokens that it is to keep, fewer than there are.
            call: See :meth:`images`.

        Raises:
            TokenPruneError: The method compares frames, and there is one; or there are more images than tokens to keep.
        """
        sizes, grid = self.images(call)
        if kept < len(sizes):
            raise BudgetError(
                f"a budget of {kept} visual tokens for {len(sizes)} images: to this model, each frame of a video (or"
                " crop of a picture) is one",
                f"every image keeps at least one: ask for {len(sizes)} or more",
            )
        frames = 0 if grid is None else len(sizes) + sum(int(part[:, 0].max()) for part in grid.split(sizes))
        if method.pruner.across_images and frames < 2:
            raise ConfigError(
                "the method compares frames, and the video has one for the model",
                "give a longer video, or use another method for this request",
            )

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
