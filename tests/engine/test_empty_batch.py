"""A batch without samples is one clear error, whoever is given it; models fail on it, each in its own way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import tokenprune as tp
from tests.support.simple import fastv, pair
from tests.support.tiny import CASES, CORE
from tests.support.toy import ToyModel
from tokenprune.adapters import adapter_for
from tokenprune.engine.trials.calibrate import measure_entropy
from tokenprune.engine.trials.fidelity import UnprunedBatch
from tokenprune.errors import ConfigError

BUDGET = {"name": "layer_average", "ratio": 0.5}
MESSAGE = "the batch is empty: it has no samples; give at least one"


def emptied(inputs: dict[str, Any]) -> dict[str, Any]:
    return {name: value[:0] if isinstance(value, Tensor) else value for name, value in inputs.items()}


@pytest.mark.parametrize("name", CORE)
def test_inside_the_block(name: str) -> None:
    model: Any = CASES[name].build()
    inputs = CASES[name].batch(model, 2, "none").inputs
    nothing = emptied(inputs)
    with tp.apply(model, fastv()) as run:
        for call in (lambda: model(**nothing), lambda: model.generate(**nothing, max_new_tokens=1)):
            with pytest.raises(ConfigError, match=MESSAGE):
                call()
        model(**inputs)  # and nothing of it is left
        assert all(kept < all_ for kept, all_ in zip(run.report.after, run.report.before, strict=True))


def test_embeddings_and_positional_ids() -> None:
    model, inputs = pair()
    rest = {name: value for name, value in emptied(inputs).items() if name != "input_ids"}
    with tp.apply(model, fastv()):
        with pytest.raises(ConfigError, match=MESSAGE):
            model(inputs_embeds=torch.zeros(0, inputs["input_ids"].shape[1], 64), **rest)
        with pytest.raises(ConfigError, match=MESSAGE):
            model.generate(inputs["input_ids"][:0], **rest, max_new_tokens=1)  # type: ignore[operator]
        model(**inputs)


@pytest.mark.parametrize(
    "use",
    [
        lambda model, full, empty: tp.tune(model, [full, empty], BUDGET, ["fastv"]),
        lambda model, full, empty: tp.tune(model, empty, BUDGET, ["fastv"]),
        lambda model, full, empty: measure_entropy(model, [full, empty], cache=False),
        lambda model, full, empty: UnprunedBatch(adapter_for(model), empty),
    ],
)
def test_as_samples_that_are_measured(use: Callable[..., Any]) -> None:
    model, inputs = pair()
    with pytest.raises(ConfigError, match=MESSAGE):
        use(model, inputs, emptied(inputs))


def test_no_samples_for_a_processor() -> None:
    with pytest.raises(ConfigError, match="there are no samples to encode; give at least one"):
        ToyModel().load().encode([])
