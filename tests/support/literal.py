"""Helpers for tests of selections: signals recorded by hooks of the tests' own, and plain arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import tokenprune as tp
from tests.support.tiny import CASES
from tests.support.tiny.core import CACHE, Padding, Variant
from tokenprune.ops.topk import apportion


@dataclass(frozen=True)
class Recording:
    """One prompt batch, and the states of the unpruned model on it.

    Attributes:
        model: The model.
        inputs: Its inputs.
        image_positions: Positions of each image's tokens, by sample and image.
        text_positions: Positions of the text tokens, by sample.
        layer_inputs: Hidden states that enter each layer, ``[batch, seq, dim]``, float64.
        cached_keys: Each layer's cached keys after rotary embedding, ``[batch, seq, heads * head_dim]``, float64.
            A layer with a sliding window has only the last ones.
    """

    model: Any
    inputs: dict[str, Tensor]
    image_positions: list[list[list[int]]]
    text_positions: list[list[int]]
    layer_inputs: list[Tensor]
    cached_keys: list[Tensor]

    def kept(self, method: Mapping[str, Any]) -> list[list[int]]:
        """Positions that a method keeps, by sample."""
        with torch.no_grad(), tp.apply(self.model, tp.Method.from_dict(method)) as run:
            self.model(**self.inputs)
        return [[int(position) for position in row if position >= 0] for row in run.stages[0].kept]

    def image_by_image(self, tokens: int, choose: Callable[[int, int, int], list[int]]) -> list[list[int]]:
        """Positions that a choice within every image keeps, by sample, of ``tokens`` in total.

        ``choose`` gets the sample, the number of the image and how many of its tokens to keep, and returns their
        numbers within the image.
        """
        found = []
        for sample, images in enumerate(self.image_positions):
            quotas = self.quotas(sample, tokens)
            triples = zip(range(len(images)), images, quotas, strict=True)
            found.append(sorted(image[i] for number, image, count in triples for i in choose(sample, number, count)))
        return found

    def quotas(self, sample: int, tokens: int) -> list[int]:
        """Number of tokens that each image of a sample keeps, of ``tokens`` in total."""
        sizes = [len(image) for image in self.image_positions[sample]]
        return sizes if sum(sizes) <= tokens else apportion(tokens, sizes)


def record(
    name: str, variant: Variant = "image", padding: Padding = "left", batch: int = 2, seed: int = 2
) -> Recording:
    """Run a tiny model unpruned and record its states."""
    case = CASES[name]
    model = case.build()
    prompts = case.batch(model, batch, padding, seed=seed, variant=variant)
    layer_inputs: list[Tensor] = []

    def record_input(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        layer_inputs.append((args[0] if args else kwargs["hidden_states"]).double())

    hooks = [layer.register_forward_pre_hook(record_input, with_kwargs=True) for layer in model.get_decoder().layers]
    with torch.no_grad():
        cache = model(**prompts.inputs, use_cache=True)[CACHE]
    for hook in hooks:
        hook.remove()
    image_positions, text_positions = [], []
    for ids, mask, sizes in zip(
        prompts.inputs["input_ids"], prompts.inputs["attention_mask"], prompts.groups, strict=True
    ):
        visual = torch.isin(ids, torch.tensor(case.visual_ids))
        image_positions.append([image.tolist() for image in visual.nonzero()[:, 0].split(sizes)])
        text_positions.append((mask.bool() & ~visual).nonzero()[:, 0].tolist())
    cached_keys = [layer.keys.transpose(1, 2).flatten(2).double() for layer in cache.layers]
    return Recording(model, prompts.inputs, image_positions, text_positions, layer_inputs, cached_keys)


def cosine(one: Tensor, other: Tensor) -> float:
    """Cosine similarity, term by term."""
    a, b = one.tolist(), other.tolist()
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    norms = sum(x * x for x in a) ** 0.5 * sum(y * y for y in b) ** 0.5
    return dot / norms if norms > 0 else 0.0


def exact_vectors(count: int, distinct: int, seed: int, dim: int = 16) -> Tensor:
    """``count`` vectors of +-1 drawn from a few distinct ones: duplicates, equal cosines, and no rounding errors."""
    noise = torch.Generator().manual_seed(seed)
    different = torch.randint(0, 2, (distinct, dim), generator=noise).float() * 2 - 1
    return different[torch.randint(0, distinct, (count,), generator=noise)]
