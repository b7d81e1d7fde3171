"""DeepStack: visual features that a decoder adds to the hidden states after some of its layers (Qwen3-VL)."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from tokenprune.errors import UnsupportedFeatureError
from tokenprune.ops.rows import take


class Deepstack:
    """Features that the decoder would add after layers that see fewer tokens: the prefill adds the kept rows itself.

    Args:
        features: Features that the decoder would add after each layer, ``[visual tokens, dim]`` each.
        mask: Where the visual tokens are, bool ``[batch, seq]``.
        first: The first layer that sees fewer tokens.
    """

    def __init__(self, features: list[Tensor], mask: Tensor, first: int) -> None:
        self._features = dict(enumerate(features[first:], start=first))
        self._mask = mask

    def add(self, layer: int, hidden: Tensor, rows: Tensor | None) -> Tensor:
        """The output of a layer with its features added.

        Args:
            layer: The layer.
            hidden: Its output ``[batch, rows, dim]``.
            rows: Position of each row in the unpruned sequence; None while the sequence is whole.
        """
        features = self._features.pop(layer, None)
        if features is None:
            return hidden
        dense = features.new_zeros(*self._mask.shape, features.shape[-1])
        dense[self._mask.to(features.device)] = features
        dense = dense.to(hidden.device, hidden.dtype)
        return hidden + (dense if rows is None else take(dense, rows, 1, 0))


def take_over(arguments: Mapping[str, Any], first: int, num_layers: int) -> tuple[Mapping[str, Any], Deepstack | None]:
    """Take the features of layers that will see fewer tokens out of the decoder's arguments.

    Args:
        arguments: The decoder's arguments by name.
        first: The first layer that sees fewer tokens.
        num_layers: Layers of the decoder.

    Returns:
        The arguments that are left, and what was taken out, if anything.

    Raises:
        UnsupportedFeatureError: The decoder adds features *before* such layers (Granite 4 Vision).
    """
    early = arguments.get("deepstack_features")
    if early:
        last = max(early) if isinstance(early, Mapping) else num_layers
        if last > first:
            raise UnsupportedFeatureError(
                f"the decoder adds visual features before layer {last}, after layer {first} was pruned",
                f"prune at layer {last} or later" if last < num_layers else "it cannot be pruned exactly",
            )
    features = arguments.get("deepstack_visual_embeds")
    if features is None or len(features) <= first:
        return arguments, None
    taken = Deepstack(list(features), arguments["visual_pos_masks"], first)
    return {**arguments, "deepstack_visual_embeds": list(features[:first])}, taken
