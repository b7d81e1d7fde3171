"""Copies of a model made inside a block, and traces of it."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch

import tokenprune as tp
from tests.support.simple import fastv, pair, pruned_logits
from tokenprune.engine.hooks import ModelHook
from tokenprune.errors import UnsupportedFeatureError


@pytest.mark.parametrize("way", ["deepcopy", "pickle", "torch.save"])
@pytest.mark.parametrize("tower", [False, True])
@torch.no_grad()
def test_a_copy_is_an_ordinary_model(way: str, tower: bool) -> None:
    """It has its own weights, runs unpruned, is not busy, and keeps nothing alive of the block."""
    model, inputs = pair()
    whole = pair()[0](**inputs).logits
    with tp.apply(model, tp.load_method("visionzip", keep_ratio=0.3) if tower else fastv()):
        if way == "deepcopy":
            model(**inputs)  # the hooks on the layers are there; after a forward, transformers' own cannot be pickled
            made = copy.deepcopy(model)
        elif way == "pickle":
            made = pickle.loads(pickle.dumps(model))
        else:
            file = io.BytesIO()
            torch.save(model, file)
            file.seek(0)
            made = torch.load(file, weights_only=False)
        hooks = [hook for module in made.modules() for hook in module._forward_pre_hooks.values()]
        assert not any(isinstance(hook, ModelHook) for hook in hooks)  # they would hold the engine
        assert torch.equal(made(**inputs).logits, whole)
        assert torch.equal(pruned_logits(made, inputs), pruned_logits(copy.deepcopy(made), inputs))
    made.get_input_embeddings().weight.zero_()
    assert torch.equal(model(**inputs).logits, whole)
    assert not torch.equal(made(**inputs).logits, whole)


@torch.no_grad()
def test_a_copy_keeps_what_others_put_on_the_model() -> None:
    """A replacement that was there before the block is copied as it would be without the block."""
    model, inputs = pair()
    calls: list[int] = []

    class Counting:
        def __init__(self, inner: object) -> None:
            self.inner = inner

        def __call__(self, *args: object, **kwargs: object) -> object:
            calls.append(1)
            return self.inner(*args, **kwargs)  # type: ignore[operator]

    model.forward = Counting(model.forward)
    with tp.apply(model, fastv()):
        made = copy.deepcopy(model)
    assert type(vars(made)["forward"]) is Counting
    made(**inputs)
    assert calls == [1]
    assert type(vars(model)["forward"]) is Counting


@pytest.mark.slow
@torch.no_grad()
def test_exports_and_traces_are_refused() -> None:
    model, inputs = pair()
    with tp.apply(model, fastv()):
        with pytest.raises(UnsupportedFeatureError, match="exported or traced"):
            torch.export.export(model, (), {**inputs, "use_cache": False})
        with pytest.raises(UnsupportedFeatureError, match="exported or traced"):
            torch.jit.trace(model, example_kwarg_inputs=dict(inputs), strict=False)
    torch.export.export(model, (), {**inputs, "use_cache": False})
