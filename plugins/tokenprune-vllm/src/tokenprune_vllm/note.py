"""What travels with a picture or video from the processor to the model: the settings, and where its tokens stand."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tokenprune.authoring import Modality
from tokenprune_vllm.settings import Settings

#: Ids of text, and the number of visual tokens behind it.
Run = tuple[tuple[int, ...], int]


@dataclass(frozen=True)
class Note:
    """The note of a picture or video, which is called an item.

    Attributes:
        settings: The settings, as JSON.
        kind: ``image`` or ``video``.
        runs: The text before each run of visual tokens that belongs to the item, and the length of the run. An item of
            one run has no text of its own: what stands around it is the prompt's.
        end: Ids of the text behind the last run.
        kept: Visual tokens that are kept.
        seed: A number made of the item's pixels, with which random choices are seeded.
    """

    settings: str
    kind: Modality
    runs: tuple[Run, ...]
    end: tuple[int, ...]
    kept: int
    seed: int

    @property
    def tokens(self) -> int:
        """Visual tokens of the item."""
        return sum(count for _, count in self.runs)

    @property
    def text(self) -> tuple[int, ...]:
        """Ids of all text of the item, which stays."""
        return tuple(itertools.chain(*(text for text, _ in self.runs), self.end))

    @property
    def rows(self) -> int:
        """Tokens of the prompt that stand for the item: its text, and the visual tokens that are kept."""
        return len(self.text) + self.kept

    @property
    def parsed(self) -> Settings:
        """The settings."""
        return Settings.model_validate_json(self.settings)

    @property
    def renumbered(self) -> bool:
        """Whether the tokens that are left have new positions, without gaps."""
        method = self.parsed.resolved()
        return method is not None and method.positions == "renumbered" and self.kept < self.tokens

    def ids(self, visual: int) -> Tensor:
        """The ids of the item before anything is dropped, long ``[tokens and text]``.

        Args:
            visual: The id that stands for a visual token.
        """
        parts: list[Sequence[int]] = [part for text, count in self.runs for part in (text, [visual] * count)]
        return torch.tensor(list(itertools.chain(*parts, self.end)), dtype=torch.long)

    def written(self) -> Tensor:
        """As bytes, uint8 ``[length]``: vLLM carries tensors."""
        return torch.frombuffer(bytearray(json.dumps(vars(self)).encode()), dtype=torch.uint8).clone()

    @classmethod
    def read(cls, data: Tensor) -> Note:
        """From its bytes."""
        found: dict[str, Any] = json.loads(bytes(data.flatten().tolist()))
        runs = tuple((tuple(text), count) for text, count in found["runs"])
        return cls(**{**found, "runs": runs, "end": tuple(found["end"])})


def runs_of(ids: Sequence[int], visual: Tensor) -> tuple[tuple[Run, ...], tuple[int, ...]]:
    """The runs of an item and the text behind the last; the text around a single run is left out.

    Args:
        ids: Ids of the item.
        visual: Visual tokens, bool ``[ids]``, on the host.
    """
    if bool(visual.all()):
        return (((), len(ids)),), ()
    runs, text = list[Run](), tuple[int, ...]()
    for is_visual, part in _parts(ids, visual):
        if is_visual:
            runs.append((text, len(part)))
        text = () if is_visual else part
    return (((), runs[0][1]),) if len(runs) == 1 else tuple(runs), text if len(runs) > 1 else ()


def _parts(ids: Sequence[int], visual: Tensor) -> Iterator[tuple[bool, tuple[int, ...]]]:
    for is_visual, part in itertools.groupby(zip(ids, visual.tolist(), strict=True), key=lambda pair: pair[1]):
        yield is_visual, tuple(token for token, _ in part)
