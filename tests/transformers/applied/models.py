"""Applies a method to every vision-language model that a test calls, when it is called first."""

from __future__ import annotations

import contextlib
import functools
import hashlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.generation import GenerationMixin

import tokenprune as tp
from tokenprune.errors import TokenPruneError

NO_LABELS = "shift_labels"
"""Tests with this in their name are about labels: theirs are left on the call, which is refused."""


class Models:
    """The models of one test.

    Args:
        method: What is applied; None to only note what the models return.

    Attributes:
        drops: Prompts of which visual tokens were dropped.
        outputs: A digest of what each call returned.
        left: What stayed on a model after its block.
    """

    def __init__(self, method: tp.Method | None) -> None:
        self.method = method
        self.begin("")

    def begin(self, test: str) -> None:
        """A test begins."""
        self.test, self.drops = test, 0
        self.outputs: list[str] = []
        self.left: list[str] = []
        self._open: list[tuple[nn.Module, tp.Run, contextlib.ExitStack]] = []
        self._inside = False
        self._counted: object = None

    def end(self, quiet: bool = False) -> None:
        """The test is over: leave all blocks.

        Args:
            quiet: The test has failed, and what a block says at its end is not of interest.

        Raises:
            TokenPruneError: Nothing was pruned in a block.
        """
        with contextlib.ExitStack() as blocks:
            if quiet:
                blocks.enter_context(contextlib.suppress(TokenPruneError))
            for model, _, block in self._open:
                blocks.callback(self._look, model)
                blocks.push(block)
            self._open = []

    # ---- what transformers calls ---

    def call(self, own: Any, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A model is called, by a test or by ``generate``, or it is a part of a model that is running."""
        if self._inside:
            return own(model, *args, **kwargs)
        self._apply(model)
        labels = None
        if self._run_of(model) is not None and NO_LABELS not in self.test:
            labels = kwargs.pop("labels", None)  # refused, and most tests do not mean them
        self._inside = True
        try:
            output = own(model, *args, **kwargs)
        finally:
            self._inside = False
        self.outputs.append(digest(output))
        self._count_drops(self._run_of(model))
        if labels is not None and hasattr(output, "logits"):
            output["loss"] = output.logits.float().pow(2).mean()  # some loss: the tests look at gradients
        return output

    def _count_drops(self, run: tp.Run | None) -> None:
        stages = [] if run is None else run.stages
        if stages and stages[0] is not self._counted:  # a decode step leaves the stages of its prompt
            self._counted = stages[0]
            self.drops += any(stage.after < stage.before for stage in stages)

    def generate(self, own: Any, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A model generates."""
        if self._apply(model):
            return model.generate(*args, **kwargs)  # what the method put there
        return own(model, *args, **kwargs)

    # ---- blocks ---

    def _apply(self, model: nn.Module) -> bool:
        """Open a block for a model that is in none; whether one was opened."""
        if self.method is None or not takes_pictures(model) or self._run_of(model) is not None:
            return False
        inside = set(map(id, model.modules()))
        for entry in [entry for entry in self._open if id(entry[0]) in inside]:  # a part was called by itself before
            self._open.remove(entry)
            entry[2].close()
            self._look(entry[0])
        block = contextlib.ExitStack()
        run = block.enter_context(tp.apply(model, self.method))
        self._open.append((model, run, block))
        return True

    def _run_of(self, model: nn.Module) -> tp.Run | None:
        return next((run for other, run, _ in self._open if any(part is model for part in other.modules())), None)

    def _look(self, model: nn.Module) -> None:
        for name, module in model.named_modules():
            values = [*module._forward_hooks.values(), *module._forward_pre_hooks.values(), *vars(module).values()]
            self.left += [f"{value!r} on {name or 'the model'}" for value in values if ours(value)]


def ours(value: object) -> bool:
    """Whether an object is one of the engine's."""
    return type(value).__module__.startswith("tokenprune.")


def takes_pictures(model: Any) -> bool:
    """Whether a model has a config of a vision tower."""
    config = getattr(model, "config", None)
    return getattr(config, "vision_config", None) is not None or getattr(config, "vlm_config", None) is not None


def digest(output: Any) -> str:
    """What a call returned, down to the bit: logits or hidden states."""
    value = getattr(output, "logits", None)
    value = getattr(output, "last_hidden_state", None) if value is None else value
    if isinstance(output, tuple):  # a loss comes first where there are labels
        value = next((item for item in output if isinstance(item, torch.Tensor) and item.dim() > 1), None)
    if not isinstance(value, torch.Tensor) or value.is_meta:
        return type(output).__name__
    data = value.detach().to(torch.float64).contiguous().numpy().tobytes()
    return f"{tuple(value.shape)} {hashlib.sha256(data).hexdigest()[:12]}"


@contextlib.contextmanager
def watched(models: Models) -> Iterator[None]:
    """Every call of a model, and every generation, goes through ``models`` inside the block."""
    own_call, own_generate = PreTrainedModel.__call__, GenerationMixin.generate

    @functools.wraps(own_call)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return models.call(own_call, self, args, kwargs)

    @functools.wraps(own_generate)
    def generate(self: Any, *args: Any, **kwargs: Any) -> Any:
        return models.generate(own_generate, self, args, kwargs)

    PreTrainedModel.__call__, GenerationMixin.generate = call, generate
    try:
        yield
    finally:
        del PreTrainedModel.__call__
        GenerationMixin.generate = own_generate
