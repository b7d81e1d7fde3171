"""Generation without a cache: every step is a whole forward, and the first step's choice is kept."""

import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tokenprune.adapters.base import Adapter
from tokenprune.fingerprint import fingerprint
from tokenprune.pruners.base import Selection

#: Generations that may take turns on one thread (contrastive decoding runs two); older ones are forgotten.
REMEMBERED = 16


@dataclass(frozen=True)
class Choice:
    """The choice of one stage at the first step.

    Attributes:
        selection: The tokens.
        counts: Their number per sample and image. A budget stated in FLOPs would allow others at each longer step.
    """

    selection: Selection
    counts: list[list[int]]


@dataclass(frozen=True, eq=False)  # a step is itself only
class FinishedStep:
    """One finished step of a generation without a cache.

    Attributes:
        ids: Its ``input_ids``, copied: somebody may write the next prompt into the same memory.
        pixels: Its images and videos by name, or what ``generate`` encoded of them. The tensors themselves are kept:
            freed memory may hold another image by the next call.
        content: The fingerprint of the images and videos: somebody may write the next picture into the same memory.
        choices: The choice of each stage, by its number; a stage that dropped nothing has none.
    """

    ids: Tensor
    pixels: Mapping[str, Any]
    choices: Mapping[int, Choice]
    content: str | None = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "ids", self.ids.clone())
        object.__setattr__(self, "content", fingerprint(self.pixels))


class Replays:
    """The latest steps that one method took in generations without a cache, on one thread."""

    def __init__(self) -> None:
        self._steps: deque[FinishedStep] = deque(maxlen=REMEMBERED)

    def take(self, call: Mapping[str, Any], adapter: Adapter) -> Mapping[int, Choice] | None:
        """The choices of the step that a call continues, or None.

        A call continues a step when its ids are one token longer, its images are the same tensors with the same values,
        and nothing before the last visual token differs; beams may have swapped the text behind it.

        Args:
            call: The arguments of the model's forward, by name.
            adapter: The model's adapter.
        """
        ids = call.get("input_ids")
        if call.get("use_cache") is not False or ids is None:
            return None
        pixels = pixel_inputs(call)
        for step in self._steps:
            one_longer = ids.shape == (step.ids.shape[0], step.ids.shape[1] + 1)
            if (
                one_longer
                and _same_memory(step.pixels, pixels)
                and _continues(ids, step.ids, adapter)
                and step.content == fingerprint(pixels)
            ):
                self._steps.remove(step)
                return step.choices
        return None

    def remember(self, call: Mapping[str, Any], choices: Mapping[int, Choice]) -> None:
        """Keep the choices of a finished step for the next one."""
        ids = call.get("input_ids")
        if ids is not None:
            self._steps.append(FinishedStep(ids, pixel_inputs(call), choices))


class ThreadReplays(threading.local):
    """The latest steps that one method took in generations without a cache. Every thread sees its own.

    Attributes:
        own: Those of this thread.
    """

    def __init__(self) -> None:
        self.own = Replays()


def pixel_inputs(call: Mapping[str, Any]) -> dict[str, Any]:
    """A call's images and videos by name, and what ``generate`` encoded of them before the call."""
    pixels = {name: value for name, value in call.items() if isinstance(value, Tensor) and "pixel" in name}
    encoded = call.get("mm_encoder_outputs") or {}
    return {**pixels, **{f"encoded {kind}": output for kind, output in encoded.items()}}


def _same_memory(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether these are the same tensors; equal ones do not count."""
    return one.keys() == other.keys() and all(_same(one[name], other[name]) for name in one)


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):  # another view of the same memory is the same image
        return one.data_ptr() == other.data_ptr() and one.shape == other.shape
    return one is other


def _continues(ids: Tensor, earlier: Tensor, adapter: Adapter) -> bool:
    """Whether each row is an earlier row and one token."""
    mask = adapter.visual_mask({"input_ids": earlier})
    if mask is None:
        return False
    end = int(mask.int().cumsum(1).argmax(1).max()) + 1
    rows = {tuple(row) for row in earlier.tolist()}
    return torch.equal(ids[:, :end], earlier[:, :end]) and all(tuple(row[:-1]) in rows for row in ids.tolist())
