"""Finds samples that are copies of others: equal prompts with equal pictures. A copy tells nothing new."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from tokenprune.adapters.base import Adapter
from tokenprune.fingerprint import fingerprint

#: Inputs that follow from the ids, and differ with the padding of the batch.
FOLLOWS = ("attention_mask", "position_ids", "token_type_ids", "mm_token_type_ids", "cache_position")


def distinct(adapter: Adapter, batches: Sequence[Mapping[str, Any]]) -> list[list[int]]:
    """The places of each batch whose samples are no copies of earlier ones.

    Samples are compared by their contents, whatever batch they are in: by the ids without padding, and by the rows of
    every other input that belong to them. An input that cannot be divided among the samples of its batch counts whole,
    so that different samples are never taken for copies.

    Args:
        adapter: The model's adapter, which says where the images of a batch are.
        batches: Inputs as for ``model(**inputs)``, with ``input_ids``.
    """
    seen: set[str] = set()
    found = []
    for inputs in batches:
        places = []
        for place, content in enumerate(_contents(adapter, inputs)):
            if content is None or content not in seen:
                places.append(place)
            if content is not None:
                seen.add(content)
        found.append(places)
    return found


def _contents(adapter: Adapter, inputs: Mapping[str, Any]) -> list[str | None]:
    """The fingerprint of every sample of a batch; None where an input of it cannot be read."""
    ids, mask = inputs["input_ids"], inputs.get("attention_mask")
    layout = adapter.locate(inputs)
    tokens, images = [0] * len(ids), [0] * len(ids)
    if layout is not None:
        tokens = layout.mask.sum(1).tolist()
        images = (layout.groups.amax(1) + 1).tolist()
    others = {name: value for name, value in inputs.items() if name not in ("input_ids", *FOLLOWS)}
    divided = {name: _parts(value, tokens, images) for name, value in others.items()}

    def content(place: int) -> str | None:
        row = ids[place] if mask is None or mask.dim() != 2 else ids[place][mask[place].bool()]
        # of an input that is not divided nobody knows which part is whose
        whole = {name: others[name] for name, parts in divided.items() if parts is None}
        own = {name: parts[place] for name, parts in divided.items() if parts is not None}
        return fingerprint(row, own, whole, place if whole and len(ids) > 1 else None)

    return [content(place) for place in range(len(ids))]


def _parts(value: Any, tokens: Sequence[int], images: Sequence[int]) -> Sequence[Any] | None:
    """An input divided among the samples of its batch; None where it is unknown how.

    Args:
        value: The input.
        tokens: Visual tokens of each sample.
        images: Images and videos of each sample.
    """
    try:
        rows = len(value)
    except TypeError:
        return None
    if isinstance(value, Mapping | str):
        return None
    if rows == len(tokens):
        return [value[place] for place in range(rows)]
    if rows == sum(images):
        return _split(value, images)
    shares = [count * rows / max(1, sum(tokens)) for count in tokens]  # patches, or tiles of equally many tokens
    if all(share.is_integer() for share in shares):
        return _split(value, [int(share) for share in shares])
    return None


def _split(value: Any, sizes: Sequence[int]) -> list[Any]:
    ends = torch.tensor(sizes).cumsum(0).tolist()
    return [value[end - size : end] for end, size in zip(ends, sizes, strict=True)]
