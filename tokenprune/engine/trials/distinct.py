"""Which samples are copies of others: equal prompts with equal pictures. A copy says nothing that is new."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tokenprune.adapters.base import Adapter

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
    seen: set[bytes] = set()
    found = []
    for inputs in batches:
        places = []
        for place, content in enumerate(_contents(adapter, inputs)):
            if content not in seen:
                seen.add(content)
                places.append(place)
        found.append(places)
    return found


def _contents(adapter: Adapter, inputs: Mapping[str, Any]) -> list[bytes]:
    """A digest of every sample of a batch."""
    ids, mask = inputs["input_ids"], inputs.get("attention_mask")
    layout = adapter.locate(inputs)
    tokens, images = [0] * len(ids), [0] * len(ids)
    if layout is not None:
        tokens = layout.mask.sum(1).tolist()
        images = (layout.groups.amax(1) + 1).tolist()
    digests = [hashlib.blake2b(digest_size=16) for _ in range(len(ids))]
    for place, digest in enumerate(digests):
        row = ids[place] if mask is None or mask.dim() != 2 else ids[place][mask[place].bool()]
        _add(digest, row)
    for name in sorted(inputs.keys() - {"input_ids", *FOLLOWS}):
        value = inputs[name]
        parts = _parts(value, tokens, images)
        for place, digest in enumerate(digests):
            digest.update(name.encode())
            if parts is None and len(digests) > 1:  # nobody knows which part is whose
                digest.update(str(place).encode())
            _add(digest, value if parts is None else parts[place])
    return [digest.digest() for digest in digests]


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


def _add(digest: Any, value: Any) -> None:
    """Add a value to a digest: the bytes of tensors, what others are when they are written."""
    if isinstance(value, Tensor):
        digest.update(repr((tuple(value.shape), str(value.dtype))).encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    elif isinstance(value, list | tuple):
        for item in value:
            _add(digest, item)
    else:
        digest.update(repr(value).encode())
