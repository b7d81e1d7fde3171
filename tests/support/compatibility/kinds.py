"""The KV caches: what each is, and a generation on it judged by the oracle."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._dynamo.utils import counters
from transformers import CompileConfig, DynamicCache, PreTrainedModel, QuantizedCache, StaticCache

from tests.support import matrix
from tests.support.compatibility.judging import Apply, Cell, Found
from tests.support.matrix import difference
from tests.support.oracle import Inputs, Stage, oracle_generate_logits, tolerance
from tests.support.tiny import CASES, TinyCase
from tests.support.tiny.core import CACHE, Padding, Variant

NEW = 5
"""Generated tokens."""
DEFAULT, STATIC, COMPILED, FP8, NONE = "default", "static", "static, compiled", "8-bit floats", "none"
KINDS = (DEFAULT, STATIC, COMPILED, FP8, NONE)
"""The columns."""
EAGER = (DEFAULT, STATIC, FP8, NONE)
"""For what ends with the prompt, which always runs eagerly."""


def compiled_steps() -> CompileConfig:
    """Dynamo traces and guards the decode steps, also on a CPU; nothing is lowered."""
    config = CompileConfig(backend="eager", mode=None)
    config._compile_all_devices = True
    return config


def cache_options(kind: str) -> dict[str, Any]:
    """Options of `generate` for a kind of cache that `generate` itself makes; see :func:`cache_of` for the others."""
    return {
        STATIC: {"disable_compile": True},
        COMPILED: {"compile_config": compiled_steps()},
        NONE: {"use_cache": False},
    }.get(kind, {})


def cache_of(kind: str, model: PreTrainedModel, inputs: Inputs, new: int = NEW) -> dict[str, Any]:
    """A cache that the caller makes, as an argument of the model, with room for a prompt and `new` tokens."""
    text: Any = model.config.get_text_config()
    made: dict[str, Callable[[], Any]] = {
        DEFAULT: lambda: DynamicCache(config=text),
        STATIC: lambda: StaticCache(config=text, max_cache_len=inputs["input_ids"].shape[1] + new),
        COMPILED: lambda: StaticCache(config=text, max_cache_len=inputs["input_ids"].shape[1] + new),
        FP8: lambda: QuantizedCache(backend="fp8", config=model.config),
    }
    return {CACHE: made[kind]()} if kind in made else {}


def shallow(model: Any) -> Any:
    """The model with its first three layers: Dynamo traces every layer anew."""
    decoder = model.get_decoder()
    decoder.layers = decoder.layers[:3]
    decoder.config.num_hidden_layers = 3
    return model


def stages_of(run: Any) -> list[Stage]:
    """The stages of a run, which dropped something; none where there is no run, as on the unpruned model."""
    if not run:
        return []
    stages = matrix.stages_of(run)
    assert stages, "no stage is reported"
    assert sum(run.report.after) < sum(run.report.before), "nothing was pruned"
    return stages


@dataclass
class Use:
    """A model, a prompt for it, and a kind of cache.

    Args:
        kind: The kind of cache.
        family: The tiny model.
        attention: Its attention implementation.
        variant: The pictures of each sample.
        padding: Where the prompts are padded.
        batch: Samples.
        model: The model; by default that of the family.
    """

    kind: str
    family: str = "llava"
    attention: str = "sdpa"
    variant: Variant = "image"
    padding: Padding = "left"
    batch: int = 2
    model: Any = None

    def __post_init__(self) -> None:
        if self.model is None and self.kind == COMPILED:  # a compiled call stays on the model
            self.model = shallow(self.case.build(self.attention))
        self.model = self.model or matrix.model_of(self.family, self.attention)
        self.inputs = self.case.batch(self.model, self.batch, self.padding, seed=1, variant=self.variant).inputs

    @property
    def case(self) -> TinyCase:
        """The family."""
        return CASES[self.family]

    def generate(self, inputs: Inputs | None = None, **more: Any) -> Any:
        """`generate` of `new` tokens on the kind of cache; `room` tokens of a static one are for later turns."""
        inputs = self.inputs if inputs is None else inputs
        new, room = more.pop("new", NEW), more.pop("room", 0)
        given = {} if CACHE in more else cache_of(self.kind, self.model, inputs, new + room)
        fixed = {"max_new_tokens": new, "min_new_tokens": new, "output_logits": True, "return_dict_in_generate": True}
        torch.manual_seed(0)
        return self.model.generate(**inputs, **fixed, **cache_options(self.kind), **given, **more)

    def judged(self, run: Any, out: Any, inputs: Inputs | None = None, cut: bool = False) -> Found:
        """The logits of a generation beside those of the masked model, on the tokens that it wrote.

        Args:
            run: The run.
            out: What `generate` returned; several sequences of a sample follow each other.
            inputs: The prompt with the pictures; what follows it was written, or is a later turn.
            cut: Whether the method cuts earlier caches.
        """
        stages = stages_of(run)
        inputs = self.inputs if inputs is None else inputs
        expected = self.expected(inputs, out.sequences[:, inputs["input_ids"].shape[1] :], stages, cut)
        return self.found(run, torch.stack(out.logits, 1), expected[:, -len(out.logits) :])

    def expected(self, inputs: Inputs, new: Tensor, stages: list[Stage], cut: bool = False) -> Tensor:
        """The oracle's logits of the tokens behind a prompt."""
        copies = len(new) // len(inputs["input_ids"])
        inputs = {name: value.repeat_interleave(copies, 0) for name, value in inputs.items()} if copies > 1 else inputs
        return oracle_generate_logits(self.model, inputs, new, stages, self.case.visual_ids, self.case.appended, cut)

    def found(self, run: Any, ours: Tensor, theirs: Tensor, remark: str = "") -> Found:
        """Two tensors compared."""
        if self.kind == COMPILED:
            remark = remark or ran_eagerly()
        allowed = tolerance(theirs) * self.case.slack
        largest = float(theirs.abs().max())
        return Found(difference(ours, theirs), allowed, largest, run.report.kv_rounded, remark)


def ran_eagerly() -> str:
    """A remark on what Dynamo did not compile; empty if all decode steps ran compiled."""
    if not counters["stats"]["unique_graphs"]:
        return "transformers does not compile these steps"
    return "calls that read several tokens run eagerly" if counters["graph_break"] else ""


def over(kinds: tuple[str, ...], cell: Callable[[str, Apply], Found]) -> dict[str, Cell]:
    """A cell for each kind of cache; what Dynamo keeps is forgotten before and after a compiled one."""

    def made(kind: str) -> Cell:
        @torch.no_grad()
        def run(apply: Apply) -> Found:
            if kind != COMPILED:
                return cell(kind, apply)
            torch._dynamo.reset()
            counters.clear()
            try:
                return cell(kind, apply)
            finally:
                torch._dynamo.reset()

        return run

    return {kind: made(kind) for kind in kinds}
