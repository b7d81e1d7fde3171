"""What tests of selections share: signals recorded by hooks of their own, and images as lists of positions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import tokenprune as tp
from tests.support.tiny import CASES
from tests.support.tiny.core import Padding, Variant
from tokenprune.ops.topk import apportion


@dataclass(frozen=True)
class Seen:
    """One prompt batch, and what the unpruned model makes of it.

    Attributes:
        model: The model.
        inputs: Its inputs.
        images: Positions of every image's tokens, per sample.
        text: Positions of the text tokens, per sample.
        hidden: What enters each layer, in float64.
        keys: Each layer's cached keys, after rotary embedding, ``[batch, seq, heads * head_dim]``, in float64; a layer
            with a sliding window has only the last ones.
    """

    model: Any
    inputs: dict[str, Tensor]
    images: list[list[list[int]]]
    text: list[list[int]]
    hidden: list[Tensor]
    keys: list[Tensor]

    def kept(self, method: Mapping[str, Any]) -> list[list[int]]:
        """Positions that a method keeps, per sample."""
        with torch.no_grad(), tp.apply(self.model, tp.Method.from_dict(method)) as run:
            self.model(**self.inputs)
        return [[int(position) for position in row if position >= 0] for row in run.stages[0].kept]

    def quotas(self, sample: int, tokens: int) -> list[int]:
        """How many tokens each image of a sample keeps."""
        sizes = [len(image) for image in self.images[sample]]
        return sizes if sum(sizes) <= tokens else apportion(tokens, sizes)


def see(name: str, variant: Variant = "image", padding: Padding = "left", batch: int = 2, seed: int = 2) -> Seen:
    """Run a tiny model unpruned."""
    case = CASES[name]
    model = case.build()
    made = case.batch(model, batch, padding, seed=seed, variant=variant)
    hidden: list[Tensor] = []

    def record(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        hidden.append((args[0] if args else kwargs["hidden_states"]).double())

    hooks = [layer.register_forward_pre_hook(record, with_kwargs=True) for layer in model.get_decoder().layers]
    with torch.no_grad():
        cache = model(**made.inputs, use_cache=True).past_key_values
    for hook in hooks:
        hook.remove()
    images, text = [], []
    for ids, mask, sizes in zip(made.inputs["input_ids"], made.inputs["attention_mask"], made.groups, strict=True):
        visual = torch.isin(ids, torch.tensor(case.visual_ids))
        images.append([part.tolist() for part in visual.nonzero()[:, 0].split(sizes)])
        text.append((mask.bool() & ~visual).nonzero()[:, 0].tolist())
    keys = [layer.keys.transpose(1, 2).flatten(2).double() for layer in cache.layers]
    return Seen(model, made.inputs, images, text, hidden, keys)


def cosine(one: Tensor, other: Tensor) -> float:
    """Cosine similarity, term by term."""
    a, b = one.tolist(), other.tolist()
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    norms = sum(x * x for x in a) ** 0.5 * sum(y * y for y in b) ** 0.5
    return dot / norms if norms > 0 else 0.0


def exact_vectors(count: int, distinct: int, seed: int, dim: int = 16) -> Tensor:
    """Few distinct vectors of +-1, shuffled: duplicates and equal cosines, and no rounding anywhere."""
    noise = torch.Generator().manual_seed(seed)
    different = torch.randint(0, 2, (distinct, dim), generator=noise).float() * 2 - 1
    return different[torch.randint(0, distinct, (count,), generator=noise)]
