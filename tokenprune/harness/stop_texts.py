"""Texts at which an answer ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria


def cut(text: str, stops: Sequence[str]) -> str:
    """A text up to the first stop text in it, without it."""
    places = [place for stop in stops if (place := text.find(stop)) >= 0]
    return text[: min(places)] if places else text


class StopTexts(StoppingCriteria):  # type: ignore[misc]
    """Ends an answer of ``generate`` when its last tokens show a stop text.

    It saves time alone: what is left of an answer is decided by :func:`cut`, on the whole text.

    Args:
        decode: Ids ``[batch, tokens]`` -> the texts.
        start: Tokens of the prompts.
        stops: The stop texts, none of them empty.
    """

    def __init__(self, decode: Callable[[Tensor], list[str]], start: int, stops: Sequence[str]) -> None:
        self._decode, self._start, self._stops = decode, start, stops
        self._window = 4 + max(len(stop.encode()) for stop in stops)  # a token is a byte or more

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """Which rows are done, bool ``[batch]``."""
        texts = self._decode(input_ids[:, max(self._start, input_ids.shape[1] - self._window) :])
        done = [any(stop in text for stop in self._stops) for text in texts]
        return torch.tensor(done, device=input_ids.device)
