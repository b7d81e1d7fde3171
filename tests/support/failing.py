"""Toy models that fail in a forward: on single samples, on batches, after pruning."""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from tests.support.broken import letter
from tests.support.toy import ToyModel
from tokenprune.models.base import LoadedModel


class Failing(ToyModel):
    """The toy model that fails on some prompts.

    Attributes:
        letter: It fails on prompts with this letter.
        most: It fails on batches of more samples.
        pruned: Only where tokens were dropped.
        memory: It fails with a full memory.
        apart: Prompts of different lengths cannot be encoded together.
    """

    letter: str = ""
    most: int = 0
    pruned: bool = False
    memory: bool = False
    apart: bool = False

    #: Samples of every batch that ran.
    sizes: ClassVar[list[int]] = []

    def load(self) -> LoadedModel:
        loaded = super().load()
        model: Any = loaded.model
        encoder = loaded.encoder
        rows: list[int] = []

        def encode(samples: Any) -> Any:
            if self.apart and len({len(sample.question) for sample in samples}) > 1:
                raise ValueError("prompts of different lengths")
            return encoder(samples)

        def check(module: Any, args: Any, output: torch.Tensor) -> None:
            rows[:] = [output.shape[1]]

        def fail(module: Any, args: Any, kwargs: Any, output: Any) -> None:
            ids = kwargs["input_ids"]
            if ids.shape[1] == 1 or (self.pruned and rows[0] == ids.shape[1]):
                return
            self.sizes.append(len(ids))
            bad = bool(self.letter) and bool((ids == letter(self.letter)).any())
            if bad or (self.most and len(ids) > self.most):
                raise torch.OutOfMemoryError("CUDA out of memory") if self.memory else RuntimeError("shapes differ")

        model.model.language_model.norm.register_forward_hook(check)
        model.register_forward_hook(fail, with_kwargs=True)
        loaded.encoder = encode
        return loaded
