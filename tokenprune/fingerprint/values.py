"""The fingerprint of a model, of inputs, or of both."""

import hashlib
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import fields, is_dataclass
from functools import singledispatch

import numpy as np
import torch
from torch import Tensor, nn

from tokenprune.fingerprint.model import Weight, parts
from tokenprune.fingerprint.sampling import content, sampled

#: The beginning of every fingerprint. Raise it when the way they are made changes.
VERSION = "2"

#: Takes a piece of what is hashed.
Add = Callable[[bytes], object]


class _UnreadableError(Exception):
    """A value whose content cannot be read."""


def fingerprint(*values: object) -> str | None:
    """A short text that changes with the content of values, and with nothing else: not with their place or device.

    Of a model it covers: config and generation config, the class and the plain attributes of every module (among them
    LoRA's scaling, the active adapters, and whether the model trains), the attention implementation, and dtype, shape
    and content of every weight and buffer. Of anything else, the whole content: tensors, numpy arrays, pictures,
    numbers, texts, dataclasses, and mappings and sequences of these.

    Weights of more than 16,384 numbers are read in places: one of every 4,096 numbers, but at least 1,024. If the share
    ``s`` of such a weight's numbers changes anywhere in it, this goes unnoticed with a probability of
    ``(1 - s) ** 1024`` at most (3e-5 for one percent of one weight). A change of consecutive numbers, e.g. of rows, is
    noticed for certain if they are at least 8,192, and as many as two shares of 1/1024 of the weight. Fewer numbers may
    change unnoticed: a single one of a large weight nearly always does. A buffer that no checkpoint holds is compared
    in bfloat16, as machines compute its last bits differently. Functions, and objects that are no modules, are not
    looked into.

    Args:
        values: A model (``nn.Module``), inputs, or whatever the result depends on.

    Returns:
        ``VERSION-digits``; None if a part cannot be read, e.g. weights on the disk, or an object of an unknown class:
        then nothing is known to be equal.
    """
    digest = hashlib.blake2b(digest_size=12)
    try:
        _feed(values, digest.update)
    except (_UnreadableError, RecursionError):
        return None
    return f"{VERSION}-{digest.hexdigest()}"


def same(one: str | None, other: str | None) -> bool | None:
    """Whether two fingerprints are of the same content; None if one is unknown, or was made in another way."""
    if not one or not other or one.partition("-")[0] != other.partition("-")[0]:
        return None
    return one == other


@singledispatch
def _feed(value: object, add: Add) -> None:
    """Hash a value, with its type and length, so that no two values give the same bytes.

    Raises:
        _UnreadableError: Its content cannot be read.
    """
    if is_dataclass(value) and not isinstance(value, type):
        _tag(add, type(value).__qualname__, *(field.name for field in fields(value)))
        for field in fields(value):
            _feed(getattr(value, field.name), add)
    elif hasattr(type(value), "__array_interface__"):
        _feed_picture(value, add)
    else:
        raise _UnreadableError(type(value).__qualname__)


def _tag(add: Add, *words: object) -> None:
    """Hash words so that they are not mistaken for others."""
    text = "\0".join(map(str, words)).encode("utf-8", "surrogatepass")
    add(len(text).to_bytes(8, "little"))
    add(text)


def _feed_picture(value: object, add: Add) -> None:
    """A picture of Pillow, or another object that numpy reads."""
    mode = getattr(value, "mode", None)
    _tag(add, type(value).__qualname__, mode)
    try:
        if mode == "P":  # its numbers are those of a palette
            value = value.convert("RGBA")  # type: ignore[attr-defined]
        array = np.asarray(value)
    except (OSError, ValueError, TypeError) as error:
        raise _UnreadableError(str(error)) from error
    if array.dtype.hasobject:
        raise _UnreadableError(type(value).__qualname__)
    _feed(array, add)


@_feed.register(type(None))
@_feed.register(bool)
@_feed.register(int)
@_feed.register(float)
@_feed.register(complex)
@_feed.register(str)
@_feed.register(bytes)
@_feed.register(torch.dtype)
@_feed.register(torch.device)
@_feed.register(torch.Size)
def _feed_plain(value: object, add: Add) -> None:
    _tag(add, type(value).__qualname__, repr(value))


@_feed.register(Mapping)
def _feed_mapping(value: Mapping[object, object], add: Add) -> None:
    _tag(add, "mapping", len(value))
    for key in sorted(value, key=repr):
        _feed(key, add)
        _feed(value[key], add)


@_feed.register(Sequence)
def _feed_sequence(value: Sequence[object], add: Add) -> None:
    _tag(add, "sequence", len(value))
    for item in value:
        _feed(item, add)


@_feed.register(Set)
def _feed_set(value: Set[object], add: Add) -> None:
    _tag(add, "set", len(value))
    for item in sorted(value, key=repr):
        _feed(item, add)


@_feed.register(np.ndarray)
def _feed_array(value: np.ndarray, add: Add) -> None:
    _tag(add, "array", value.dtype.str, value.shape)
    if value.dtype.hasobject:
        _feed(value.tolist(), add)
    else:
        add(np.ascontiguousarray(value).tobytes())


@_feed.register(Tensor)
def _feed_tensor(value: Tensor, add: Add) -> None:
    _feed_numbers(value, add, lambda: content(value))


@_feed.register(Weight)
def _feed_weight(value: Weight, add: Add) -> None:
    seed = int.from_bytes(hashlib.blake2b(value.name.encode(), digest_size=8).digest(), "little")
    tensor = value.tensor
    if tensor is None:
        raise _UnreadableError(value.name)
    _tag(add, value.name)
    _feed_numbers(tensor, add, lambda: sampled(tensor, seed))


def _feed_numbers(tensor: Tensor, add: Add, read: Callable[[], bytes]) -> None:
    if tensor.device.type == "meta":
        raise _UnreadableError("a tensor without numbers")
    _tag(add, "tensor", tensor.dtype, tuple(tensor.shape))
    try:
        add(read())
    except (RuntimeError, TypeError, ValueError, AttributeError) as error:  # its class keeps the numbers elsewhere
        raise _UnreadableError(str(error)) from error


@_feed.register(nn.Module)
def _feed_model(value: nn.Module, add: Add) -> None:
    for part in parts(value):
        _feed(part, add)
