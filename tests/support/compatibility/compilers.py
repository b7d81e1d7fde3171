"""Rows: models that the caller compiled."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch._dynamo.utils import counters

from tests.support import compiling, matrix
from tests.support.compatibility.judging import Apply, Cell, Found, Row
from tests.support.compatibility.kinds import COMPILED, DEFAULT, STATIC, Use, cache_of, over, stages_of

HOW = matrix.method([1], {"name": "keep_ratio", "ratio": 0.4})
Way = Callable[[Any], tuple[Any, Any]]
"""One of :mod:`tests.support.compiling`: gives what `apply` is given, and what is called."""


def called(kind: str, apply: Apply, way: Way, inside: bool = False) -> Found:
    """A prompt and two steps of a model that the caller compiled, before the block or inside it."""
    torch._dynamo.reset()
    counters.clear()
    use = Use(COMPILED, padding="none")  # three layers
    use.kind = kind
    plain = copy.deepcopy(use.model)
    cache = cache_of(kind, use.model, use.inputs)
    given, call = (use.model, use.model) if inside else way(use.model)
    with apply(given, HOW) as run:
        if inside:
            _, call = way(use.model)
        call(**use.inputs, **cache)
        ours = torch.cat([call(input_ids=torch.full((2, 1), token), **cache).logits for token in (5, 6)], 1)
    graphs, use.model = counters["stats"]["unique_graphs"], plain
    torch._dynamo.reset()
    expected = use.expected(use.inputs, torch.tensor([[5, 6, 7]] * 2), stages_of(run))[:, 1:]
    return use.found(run, ours, expected, "" if graphs else "compiled parts run eagerly")


def compiles(way: Way, inside: bool = False) -> dict[str, Cell]:
    """The cells of a way to compile."""
    return over((DEFAULT, STATIC), lambda kind, apply: called(kind, apply, way, inside))


BEFORE = {
    DEFAULT: "engine/test_compiled.py::test_compiled_models_are_pruned",
    STATIC: "engine/test_static.py::test_what_the_caller_compiled_decodes_compiled",
}
INSIDE = {
    DEFAULT: "engine/test_compiled.py::test_a_model_may_be_compiled_inside_the_block",
    STATIC: "engine/test_static.py::test_what_is_compiled_inside_the_block_decodes_compiled",
}
ROWS = (
    Row("`torch.compile(model)`", compiles(compiling.wrapped), BEFORE),
    Row("`model.compile()`", compiles(compiling.in_place), BEFORE),
    Row("compiled layers", compiles(compiling.every_layer), BEFORE),
    Row("compiled inside the block", compiles(compiling.wrapped, inside=True), INSIDE),
)
