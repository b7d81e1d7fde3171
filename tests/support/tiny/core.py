"""What every tiny model shares: configs, weights that matter, and batches of prompts with visual tokens."""

from __future__ import annotations

import copy
import io
import pickle
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedModel

IMAGE, VIDEO, START, END = 150, 151, 152, 153
FIRST_TEXT, LAST_TEXT, VOCAB = 3, 100, 200
"""Prompts and generated tokens use the ids FIRST_TEXT .. LAST_TEXT - 1: special ids are never generated."""

TRANSFORMERS: tuple[int, ...] = tuple(map(int, transformers.__version__.split(".")[:2]))
"""Versions before 5.23 have defects of their own in beam search and in chunked prefill with images."""
FLAT_BEAMS = TRANSFORMERS >= (5, 23)
"""Older versions repeat the patches of all images row by row for beams: with a cache and without, others are seen."""
CACHE = "cache" if TRANSFORMERS >= (5, 24) else "past_key_values"
"""What the KV cache is called, as an argument and in outputs."""

Variant = Literal["image", "multi", "ragged", "video", "text"]
Padding = Literal["none", "left", "right"]
Part = tuple[int, int]
"""(token id, how many of it)."""
Sized = tuple[str, int]
"""("image" or "video", which size)."""


@dataclass(frozen=True)
class Visual:
    """One image or video of one sample.

    Args:
        parts: The placeholder tokens as runs of (id, count), with the text-like tokens a processor would put around.
        groups: Sizes of the runs of visual tokens.
        tensors: What the model gets for it; joined over all visuals of a batch by the family's `join`.
    """

    parts: tuple[Part, ...]
    groups: tuple[int, ...]
    tensors: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Batch:
    """Inputs ready for `model(**inputs)` and `model.generate(**inputs)`, and each sample's visual group sizes."""

    inputs: dict[str, Tensor]
    groups: list[list[int]]


MakeVisual = Callable[[PreTrainedModel, str, int, torch.Generator], Visual]
"""(model, "image" or "video", which size: 0 is the usual one, noise) -> Visual."""
Join = Callable[[list[list[Visual]]], dict[str, Tensor]]
Finish = Callable[[PreTrainedModel, dict[str, Tensor]], dict[str, Tensor]]


def visual(
    n: int, token: int = IMAGE, before: Sequence[int] = (), after: Sequence[int] = (), **tensors: Tensor
) -> Visual:
    """A visual of one run of `n` placeholder tokens."""
    parts = (*((i, 1) for i in before), (token, n), *((i, 1) for i in after))
    return Visual(parts, (n,), tensors)


def join_cat(samples: list[list[Visual]]) -> dict[str, Tensor]:
    """Concatenate the tensors of all visuals of the batch along dim 0, in order."""
    flat = [v for sample in samples for v in sample]
    names = dict.fromkeys(name for v in flat for name in v.tensors)
    return {name: torch.cat([v.tensors[name] for v in flat if name in v.tensors]) for name in names}


def join_padded(samples: list[list[Visual]]) -> dict[str, Tensor]:
    """Stack each sample's images as [batch, most images, ...], absent ones all zero (Idefics, SmolVLM)."""
    most = max(len(sample) for sample in samples)
    if most == 0:
        return {}
    names = next(v for sample in samples for v in sample).tensors
    out = {}
    for name in names:
        some = next(v for sample in samples for v in sample).tensors[name]
        rows = [
            torch.cat([*(v.tensors[name] for v in s), *[torch.zeros_like(some)] * (most - len(s))]) for s in samples
        ]
        out[name] = torch.stack(rows)
    return out


def token_types(name: str) -> Finish:
    """Adds a `name` row of token types: 0 text, 1 image, 2 video."""

    def finish(model: PreTrainedModel, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        ids = inputs["input_ids"]
        return {**inputs, name: (ids == IMAGE).long() + 2 * (ids == VIDEO).long()}

    return finish


def all_prefix(model: PreTrainedModel, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """`token_type_ids` of a prompt that is all prefix, seen in both directions (PaliGemma)."""
    return {**inputs, "token_type_ids": torch.zeros_like(inputs["input_ids"])}


def unchanged(model: PreTrainedModel, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """No further inputs."""
    return inputs


@dataclass(frozen=True)
class TinyCase:
    """One family's tiny random model and its inputs.

    Args:
        name: Family name.
        create: Makes the (untrained) model; `build` adds the seed, the weights, eval mode.
        make_visual: One image or video.
        variants: The variants of inputs that the family knows.
        visual_ids: Placeholder ids of visual tokens.
        join: How the tensors of the visuals become the batch's.
        finish: Adds inputs that depend on the finished `input_ids`.
        first: True puts the visuals at the very start of the prompt (PaliGemma).
        core: One of the families the project names; the others are candidates for the generic path.
        attentions: The attention implementations that the family supports.
        switched: The config that the implementation is set on, where a tower cannot have it.
        appended: What generated tokens get in per-token inputs other than `attention_mask`, where it is not 0.
        hybrid: Has layers that are not attention: hiding columns means nothing there.
        slack: How much coarser than the others its fp32 rounding is (a recurrence computed in chunks or step by step).
        beams: Its own beam search works and is the same with and without a cache.
        generates: Its `generate` runs the model; that of others hands embeddings to the language model inside.
        since: The first transformers that has the family; older ones leave the case out.
    """

    name: str
    create: Callable[[], PreTrainedModel]
    make_visual: MakeVisual
    variants: tuple[Variant, ...] = ("image", "multi", "ragged", "text")
    visual_ids: tuple[int, ...] = (IMAGE,)
    join: Join = join_cat
    finish: Finish = unchanged
    first: bool = False
    core: bool = False
    attentions: tuple[str, ...] = ("sdpa", "eager")
    switched: str | None = None
    appended: dict[str, int] = field(default_factory=dict)
    hybrid: bool = False
    slack: float = 1.0
    beams: bool = True
    generates: bool = True
    since: tuple[int, int] = (5, 17)

    def build(self, attention: str = "sdpa", seed: int = 0, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
        """The model: seeded, weights that make masks and positions matter, eval mode. Nobody else has it.

        A copy takes a tenth of the time that making one anew takes.
        """
        model = _prototype(self.create, seed).copy()
        torch.manual_seed(seed)
        if attention in self.attentions:
            model.set_attn_implementation({self.switched: attention} if self.switched else attention)
        return model if dtype == torch.float32 else model.to(dtype)

    def batch(
        self,
        model: PreTrainedModel,
        batch: int = 2,
        padding: Padding = "none",
        seed: int = 0,
        variant: Variant = "image",
    ) -> Batch:
        """A batch of prompts. Without padding, samples with fewer visual tokens get more text."""
        return self.mixed(model, [plan(variant, b) for b in range(batch)], padding, seed)[0]

    def mixed(
        self, model: PreTrainedModel, visuals: Sequence[Sequence[Sized]], padding: Padding = "left", seed: int = 0
    ) -> tuple[Batch, list[Batch]]:
        """A batch of samples with the given images and videos, and each of its samples alone, without padding."""
        samples, rows = self.parts(model, visuals, padding, seed)
        alone = [self.joined(model, [sample], pad([row], "none")) for sample, row in zip(samples, rows, strict=True)]
        return self.joined(model, samples, pad(rows, padding)), alone

    def parts(
        self, model: PreTrainedModel, visuals: Sequence[Sequence[Sized]], padding: Padding, seed: int
    ) -> tuple[list[list[Visual]], list[list[int]]]:
        """What a batch is made of: the images and videos of each sample, and its token ids."""
        noise = torch.Generator().manual_seed(seed + 1)
        samples = [[self.make_visual(model, *what, noise) for what in sample] for sample in visuals]
        return samples, prompts(samples, padding, self.first, noise)

    def joined(self, model: PreTrainedModel, samples: list[list[Visual]], tokens: dict[str, Tensor]) -> Batch:
        """A batch of the images and videos of each sample, and of tokens with their mask."""
        floats = {k: v.to(model.dtype) if v.is_floating_point() else v for k, v in self.join(samples).items()}
        inputs = self.finish(model, {**tokens, **floats})
        return Batch(inputs, [[g for v in sample for g in v.groups] for sample in samples])

    def inputs(
        self, model: PreTrainedModel, batch: int = 2, left_pad: bool = False, seed: int = 0, variant: Variant = "image"
    ) -> dict[str, Tensor]:
        """The inputs of `self.batch` alone."""
        return self.batch(model, batch, "left" if left_pad else "none", seed, variant).inputs


class Prototype:
    """A model that nobody runs, and a fast way to copy it: all but tensors and functions is pickled, once.

    Models that cannot be pickled, as those with parametrized weights, are copied by ``copy.deepcopy``.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.apart: list[Any] = []
        try:
            self.pickled = self._pickle()
        except (AttributeError, RuntimeError, TypeError, pickle.PicklingError):
            self.pickled = b""

    def _pickle(self) -> bytes:
        numbers: dict[int, int] = {}

        class Pickler(pickle.Pickler):
            def persistent_id(_, part: Any) -> int | None:  # noqa: N805 - `self` is the prototype
                if not isinstance(part, Tensor | types.FunctionType):
                    return None
                if id(part) not in numbers:
                    numbers[id(part)] = len(self.apart)
                    self.apart.append(part)
                return numbers[id(part)]

        written = io.BytesIO()
        Pickler(written).dump(self.model)
        return written.getvalue()

    def copy(self) -> PreTrainedModel:
        """A model that shares nothing with the others."""
        if not self.pickled:
            return copy.deepcopy(self.model)
        memo: dict[int, Any] = {}  # weights that are tied stay so

        class Unpickler(pickle.Unpickler):
            def persistent_load(_, number: int) -> Any:  # noqa: N805 - `self` is the prototype
                return copy.deepcopy(self.apart[number], memo)

        model: PreTrainedModel = Unpickler(io.BytesIO(self.pickled)).load()
        return model


@cache
def _prototype(create: Callable[[], PreTrainedModel], seed: int) -> Prototype:
    """The model that all models of a family and a seed are copies of."""
    torch.manual_seed(seed)
    model = create().eval()
    spread_weights(model, seed)
    allow_only_text(model)
    return Prototype(model)


def plan(variant: Variant, sample: int) -> list[Sized]:
    """The visuals of one sample as (kind, size): ragged samples differ in number and sizes."""
    if variant == "text":
        return []
    if variant == "video":
        return [("video", 0)]
    if variant == "multi":
        return [("image", 0), ("image", 0)]
    if variant == "ragged":
        return [[("image", 1), ("image", 2)], [("image", 0)], [("image", 2), ("image", 0), ("image", 1)]][sample % 3]
    return [("image", 0)]


def prompts(samples: list[list[Visual]], padding: Padding, first: bool, noise: torch.Generator) -> list[list[int]]:
    """Token ids per sample: text, visuals with text between, text."""

    def text(n: int) -> list[int]:
        return torch.randint(FIRST_TEXT, LAST_TEXT, (n,), generator=noise).tolist()

    rows = []
    for index, sample in enumerate(samples):
        before = [] if first else text(3 + (2 * index if padding != "none" else 0))
        row = list(before)
        for v in sample:
            row += [token for token, count in v.parts for _ in range(count)] + text(0 if first else 2)
        rows.append(row + text(5 - (index % 2 if padding != "none" else 0)))
    if padding == "none":
        longest = max(len(row) for row in rows)
        rows = [row + text(longest - len(row)) for row in rows]
    return rows


def pad(rows: list[list[int]], padding: Padding) -> dict[str, Tensor]:
    """`input_ids` (pad id 0) and `attention_mask`."""
    longest = max(len(row) for row in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for b, row in enumerate(rows):
        where = slice(longest - len(row), None) if padding == "left" else slice(0, len(row))
        ids[b, where] = torch.tensor(row)
        mask[b, where] = 1
    return {"input_ids": ids, "attention_mask": mask}


@torch.no_grad()
def spread_weights(model: PreTrainedModel, seed: int) -> None:
    """Matrices get std 1.2 / sqrt(fan in), embeddings std 1 (less where they are the output head, too), biases small
    noise; norms stay as they are built."""
    noise = torch.Generator().manual_seed(seed)
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    head = model.get_output_embeddings()
    tied = {id(head.weight)} & embeddings if head is not None else set()
    done: set[int] = set()
    for name, p in model.named_parameters():
        if id(p) in done or not p.is_floating_point() or p.numel() == 0:
            continue
        done.add(id(p))
        if id(p) in embeddings:
            p.normal_(0.0, 0.15 if id(p) in tied else 1.0, generator=noise)
        elif name.endswith("bias"):
            p.normal_(0.0, 0.05, generator=noise)
        elif p.ndim >= 2 and "A_log" not in name:
            fan_in = p[0].numel() if p.ndim != 3 or "conv" in name else p.shape[1]
            p.normal_(0.0, min(1.2 / fan_in**0.5, 0.5), generator=noise)


def allow_only_text(model: PreTrainedModel) -> None:
    """Generation never stops early and never makes a special token (a placeholder would ask for another image)."""
    config: Any = model.generation_config
    vocab = model.config.get_text_config().vocab_size
    config.suppress_tokens = [*range(FIRST_TEXT), *range(LAST_TEXT, vocab)]
    config.eos_token_id = None
    config.pad_token_id = 0
    config.bos_token_id = 1
    config.do_sample = False
