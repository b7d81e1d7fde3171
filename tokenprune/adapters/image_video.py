"""The base class of all families whose arguments tell images and videos apart."""

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from tokenprune.adapters.base import Adapter
from tokenprune.adapters.grids import square
from tokenprune.adapters.items import Item, ItemSize, assign_items, run_lengths
from tokenprune.adapters.layout import VisualLayout, find_tokens
from tokenprune.adapters.modalities import MODALITIES, Modality, features, uniform_sizes
from tokenprune.adapters.placements import Frames, Whole
from tokenprune.adapters.views import PlacedItem, Placement

#: Axes of the largest tensors of whole numbers that are kept: positions ``[3, batch, seq]``. Masks of pixels have more.
MOST_AXES = 3


def small_arguments(call: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out the values of floating-point tensors, and objects such as caches.

    Args:
        call: Arguments by name.

    Returns:
        Plain values, and lists of them, as they are. Of tensors, whole numbers and flags are kept as they are; others
        are on the meta device, where only the shape is left. Everything else is left out.
    """
    small = {name: _small_value(value) for name, value in call.items()}
    return {name: value for name, value in small.items() if value is not None}


def _small_value(value: Any) -> Any:
    """Leave out what takes memory of one argument; None where nothing is left of it."""
    if isinstance(value, Tensor):
        small = not value.is_floating_point() and not value.is_complex() and value.dim() <= MOST_AXES
        return value if small else without_values(value)
    if isinstance(value, list | tuple):
        return [_small_value(part) for part in value]
    return value if isinstance(value, bool | int | float | str) else None


def without_values(tensor: Tensor) -> Tensor:
    """A tensor of the same shape that holds no memory."""
    return torch.empty_like(tensor, device="meta")


class ImageVideoAdapter(Adapter):
    """A family whose prompts hold items (images and videos) with a placeholder for every visual token.

    A family overrides :meth:`item_sizes` where items differ in their number of tokens, :meth:`token_coordinates` where
    the tokens of an item are no square grid, and :meth:`tower_site` so that methods can read its vision tower. The
    placeholders in the prompt tell which sample an item belongs to, and the order of images and videos within it.
    """

    def item_sizes(self, call: Mapping[str, Any], modality: Modality, count: int) -> list[int] | None:
        """Tokens of every item of a modality, over the whole batch, in order.

        Args:
            call: The arguments of the model's forward, by name.
            modality: ``image`` or ``video``.
            count: Placeholder tokens of that modality in the batch.

        Returns:
            The sizes; None when the arguments do not tell, and every unbroken run of tokens is taken as one item.
        """
        return uniform_sizes(call, modality, count)

    def token_coordinates(self, call: Mapping[str, Any], item: Item) -> Tensor | None:
        """(frame, row, column) of each token of an item, long ``[size, 3]``; None when the family cannot tell.

        Args:
            call: The arguments of the model's forward, by name.
            item: The item.
        """
        return square(item.size)

    def placement(self, call: Mapping[str, Any], item: Item) -> Placement:
        """The placement of an item's token grid on its pictures.

        Args:
            call: The arguments of the model's forward, by name.
            item: The item.
        """
        return Frames() if item.modality == "video" else Whole()

    def feature_shapes(self, modality: Modality, computed: Any) -> Sequence[Tensor]:
        """Keep only the shapes of the features that ``generate`` computed before the call, for :meth:`placed`.

        Args:
            modality: ``image`` or ``video``.
            computed: The features of each item, ``[tokens, dim]``; see
                :func:`tokenprune.adapters.modalities.features`.

        Returns:
            One tensor per item, of the same shape but for its last axis.
        """
        return [without_values(item) for item in computed]

    def sample_items(
        self, call: Mapping[str, Any], modality: Modality, positions: Sequence[Tensor]
    ) -> list[list[ItemSize]]:
        """Sizes of the items of a modality in each sample.

        Args:
            call: The arguments of the model's forward, by name.
            modality: ``image`` or ``video``.
            positions: Where each sample has placeholders of that modality, long, on the host.
        """
        sizes = self.item_sizes(call, modality, sum(map(len, positions)))
        assigned = None if sizes is None else assign_items(sizes, list(map(len, positions)))
        if sizes is None or assigned is None:
            return [[ItemSize(length, None) for length in run_lengths(where)] for where in positions]
        return [[ItemSize(sizes[index], index) for index in indices] for indices in assigned]

    def group_sizes(self, call: Mapping[str, Any], mask: Tensor) -> list[list[int]] | None:
        """See :meth:`tokenprune.adapters.base.Adapter.group_sizes`."""
        return [[item.size for item in items] for items in self.items(call, mask)]

    def grid(self, call: Mapping[str, Any], layout: VisualLayout) -> Tensor | None:
        """See :meth:`tokenprune.adapters.base.Adapter.grid`."""
        grid = torch.full((*layout.mask.shape, 3), -1, dtype=torch.long)
        for sample, items in enumerate(self.items(call, layout.mask)):
            for item in items:
                coordinates = self.token_coordinates(call, item)
                if coordinates is not None:
                    grid[sample, item.positions] = coordinates
        return grid.to(layout.mask.device)

    def placed(self, call: Mapping[str, Any], layout: VisualLayout) -> list[list[PlacedItem]] | None:
        """See :meth:`tokenprune.adapters.base.Adapter.placed`."""
        return [
            [
                PlacedItem(
                    item.modality, item.positions, self.token_coordinates(call, item), self.placement(call, item)
                )
                for item in items
            ]
            for items in self.items(call, layout.mask)
        ]

    def without_pixels(self, call: Mapping[str, Any]) -> dict[str, Any]:
        """See :meth:`tokenprune.adapters.base.Adapter.without_pixels`."""
        small = small_arguments(call)
        if not isinstance(call.get("input_ids"), Tensor) and call.get("inputs_embeds") is not None:
            # embeddings are large: the ids of visual tokens take their place, -1 is any other token
            small["input_ids"] = torch.full(call["inputs_embeds"].shape[:2], -1, device=call["inputs_embeds"].device)
            for token in self.visual_ids:
                found = find_tokens(self.model, call, (token,))
                if found is not None:
                    small["input_ids"].masked_fill_(found, token)
        computed = {modality: features(call, modality) for modality in MODALITIES}
        small["mm_encoder_outputs"] = {
            modality: SimpleNamespace(pooler_output=self.feature_shapes(modality, found))
            for modality, found in computed.items()
            if found is not None
        }
        return small

    def items(self, call: Mapping[str, Any], mask: Tensor) -> list[list[Item]]:
        """The images and videos of every sample, in the order of their first tokens.

        Args:
            call: The arguments of the model's forward, by name.
            mask: The visual mask, bool ``[batch, seq]``.
        """
        videos = self.video_mask(call)
        codes = mask.int() if videos is None else mask.int() + (videos & mask).int()
        codes = codes.cpu()  # the only transfer: everything else is decided on the host
        batch_items: list[list[Item]] = [[] for _ in range(len(codes))]
        for code, modality in enumerate(MODALITIES, start=1):
            positions = [row.nonzero()[:, 0] for row in codes == code]
            if not sum(map(len, positions)):
                continue
            for sample, sizes in enumerate(self.sample_items(call, modality, positions)):
                item_positions = positions[sample].split([size.tokens for size in sizes])
                batch_items[sample] += [
                    Item(modality, size.index, sample, where) for where, size in zip(item_positions, sizes, strict=True)
                ]
        for items in batch_items:
            items.sort(key=lambda item: int(item.positions[0]))
        return batch_items

    def video_mask(self, call: Mapping[str, Any]) -> Tensor | None:
        """See :meth:`tokenprune.adapters.base.Adapter.video_mask`."""
        return find_tokens(self.model, call, self.placeholder_ids("video")) if len(self.visual_ids) > 1 else None

    def placeholder_ids(self, modality: Modality) -> tuple[int, ...]:
        """Ids of the placeholder tokens of a modality, from the config, sorted."""
        names = (f"{modality}_token_id", f"{modality}_token_index")
        ids = {getattr(config, name, None) for config in (self.config, self.text_config) for name in names}
        return tuple(sorted(i for i in ids if isinstance(i, int)))
