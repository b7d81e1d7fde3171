"""Conversations whose later turns bring new images: their calls, and the whole of them for the oracle."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tests.support.matrix import stages_of
from tests.support.oracle import Stage, decoder_layers, dropped, masked, positions_of_generate
from tests.support.tiny import TinyCase
from tests.support.tiny.core import CACHE, FIRST_TEXT, LAST_TEXT, Padding, Visual, pad, plan

TOKENS = ("input_ids", "attention_mask")

#: Families of which transformers sees the pictures of a later turn otherwise than those of one long prompt.
SEEN_BY_TURNS = ("gemma3", "paligemma")
DECODE = "decode"
"""A turn of three calls, each of one token that the model might have written."""


@dataclass(frozen=True, eq=False)
class Turn:
    """One call.

    Attributes:
        kind: A variant of inputs, or ``decode``.
        inputs: Its own tokens and pictures.
        start: Tokens of the conversation before it.
    """

    kind: str
    inputs: dict[str, Tensor]
    start: int

    @property
    def width(self) -> int:
        """Tokens of the call."""
        return self.inputs["input_ids"].shape[1]

    @property
    def brings_images(self) -> bool:
        """Whether pictures come with it."""
        return self.kind not in (DECODE, "text")


@dataclass(frozen=True)
class Talk:
    """A conversation.

    Attributes:
        case: The family.
        turns: Its calls.
        whole: All of it as one input.
        positions: Position ids of all of it, ``[..., batch, tokens]``.
    """

    case: TinyCase
    turns: list[Turn]
    whole: dict[str, Tensor]
    positions: Tensor

    @classmethod
    def of(
        cls, case: TinyCase, model: PreTrainedModel, kinds: Sequence[str], padding: Padding = "none", batch: int = 3
    ) -> Talk:
        """Make one with some kinds of turns."""
        turns, pictures, start = list[Turn](), [list[Visual]() for _ in range(batch)], 0
        for number, kind in enumerate(kinds):
            for inputs, samples in _calls(case, model, kind, padding, batch, number):
                turns.append(Turn(kind, inputs, start))
                start += inputs["input_ids"].shape[1]
                for own, more in zip(pictures, samples, strict=True):
                    own += more
        whole = {name: torch.cat([turn.inputs[name] for turn in turns], 1) for name in TOKENS}
        whole = case.joined(model, pictures, whole).inputs
        return cls(case, turns, whole, positions_of_generate(model, whole))

    def call(self, turn: Turn) -> dict[str, Tensor]:
        """The arguments of the call of a turn, without a cache."""
        end = turn.start + turn.width
        mask, positions = self.whole["attention_mask"][:, :end], self.positions[..., turn.start : end]
        return {**turn.inputs, "attention_mask": mask, "position_ids": positions}


def _calls(
    case: TinyCase, model: PreTrainedModel, kind: str, padding: Padding, batch: int, seed: int
) -> list[tuple[dict[str, Tensor], list[list[Visual]]]]:
    """The calls of one turn, each with the pictures of its samples."""
    if kind != DECODE:
        samples, rows = case.parts(model, [plan(kind, sample) for sample in range(batch)], padding, 10 + seed)  # type: ignore[arg-type]
        return [(case.joined(model, samples, pad(rows, padding)).inputs, samples)]
    noise, none = torch.Generator().manual_seed(seed), [list[Visual]() for _ in range(batch)]
    words = torch.randint(FIRST_TEXT, LAST_TEXT, (3, batch, 1), generator=noise)
    return [(case.joined(model, none, pad(word.tolist(), "none")).inputs, none) for word in words]


@dataclass(frozen=True)
class Told:
    """What a pruned conversation gave.

    Attributes:
        logits: Logits of each call, ``[batch, rows, vocab]``.
        kept: The stages of each call with pictures, at positions of the whole conversation.
        reports: Their reports.
        cache: The KV cache behind it.
    """

    logits: list[Tensor]
    kept: list[list[Stage]]
    reports: list[Any]
    cache: Any

    @property
    def stages(self) -> list[Stage]:
        """All stages, one for each layer: what each turn keeps."""
        layers = [layer for layer, _ in self.kept[0]]
        return [(layer, torch.cat([kept[i][1] for kept in self.kept], 1)) for i, layer in enumerate(layers)]


@torch.no_grad()
def tell(model: PreTrainedModel, talk: Talk, run: Any, cache: Any = None, turns: Sequence[Turn] | None = None) -> Told:
    """Call the model turn by turn, inside a run's block."""
    told = Told([], [], [], cache)
    for turn in talk.turns if turns is None else turns:
        output = model(**talk.call(turn), use_cache=True, **{CACHE: cache})
        cache = output[CACHE]
        told.logits.append(output.logits)
        if turn.brings_images:
            stages = [(layer, torch.where(kept >= 0, kept + turn.start, -1)) for layer, kept in stages_of(run)]
            told.kept.append(stages)
            told.reports.append(run.report)
    return Told(told.logits, told.kept, told.reports, cache)


def worst_difference(talk: Talk, told: Told, expected: Tensor, turns: Sequence[Turn] | None = None) -> float:
    """The largest difference of a kept token's logits from those of the whole conversation, over all turns."""
    gone = dropped(talk.whole, told.stages, talk.case.visual_ids, layer=10**6)
    real = talk.whole["attention_mask"].bool()
    worst = 0.0
    for turn, logits in zip(talk.turns if turns is None else turns, told.logits, strict=True):
        end = turn.start + turn.width
        for sample in range(len(gone)):
            rows = (~gone[sample, turn.start : end]).nonzero()[:, 0] + turn.start
            ours, seen = logits[sample, -len(rows) :], real[sample, rows]
            difference = (ours[seen] - expected[sample, rows[seen]]).abs().nan_to_num(nan=float("inf"))
            worst = max(worst, float(difference.max()))
    return worst


@torch.no_grad()
def expected_turns(model: PreTrainedModel, talk: Talk, stages: list[Stage], cut: bool = False) -> Tensor:
    """Logits of the whole conversation, dropped tokens hidden."""
    if talk.case.name in SEEN_BY_TURNS:
        return tell_masked(model, talk, stages)
    ends = [turn.start + turn.width for turn in talk.turns if turn.brings_images] if cut else []
    with masked(model, talk.whole, stages, talk.case.visual_ids, *ends):
        logits: Tensor = model(**talk.whole, position_ids=talk.positions, use_cache=False).logits
    return logits


@torch.no_grad()
def tell_masked(model: PreTrainedModel, talk: Talk, stages: list[Stage]) -> Tensor:
    """Logits of the whole conversation, told turn by turn to the unpruned model with a whole cache.

    For families that see the pictures of a later turn otherwise than those of one long prompt: transformers lets the
    tokens of a picture see each other in a first turn only (Gemma 3, PaliGemma).
    """
    cache, logits = None, list[Tensor]()
    for turn in talk.turns:
        with ExitStack() as stack:
            for number, layer in enumerate(decoder_layers(model)):
                gone = dropped(talk.whole, stages, talk.case.visual_ids, number)[:, : turn.start + turn.width]
                hook = partial(_hide_columns, gone)
                stack.callback(layer.register_forward_pre_hook(hook, with_kwargs=True).remove)
            output = model(**talk.call(turn), use_cache=True, **{CACHE: cache})
        cache = output[CACHE]
        logits.append(output.logits)
    return torch.cat(logits, 1)


def _hide_columns(gone: Tensor, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    mask, rows, total = kwargs["attention_mask"], args[0].shape[1], gone.shape[1]
    if mask is None:
        assert rows == 1, "everything is visible to a single token only"
        mask = torch.ones(len(gone), 1, 1, total, dtype=torch.bool)
    width = mask.shape[-1]  # of a window, the last ones
    closed = gone[:, None, None, total - width :]
    own = torch.arange(width) == torch.arange(width - rows, width)[:, None]  # nobody reads what a dropped token becomes
    value = False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
    return args, {**kwargs, "attention_mask": mask.masked_fill(closed & ~own, value)}
