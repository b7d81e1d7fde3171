"""Prompts that are given as embeddings: pruned, read as text, or refused, but never silently unpruned."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import DynamicCache

import tokenprune as tp
from tests.support.matrix import model_of
from tests.support.simple import fastv
from tests.support.tiny import CASES, CORE
from tests.support.tiny.core import CACHE
from tokenprune.adapters import adapter_for
from tokenprune.errors import UnsupportedFeatureError

FAMILIES = ["llava", "qwen2_5_vl", "gemma3"]


def embedded(model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """The same inputs with the embeddings of the tokens in place of their ids."""
    rest = {name: value for name, value in inputs.items() if name != "input_ids"}
    return {**rest, "inputs_embeds": model.get_input_embeddings()(inputs["input_ids"])}


def in_place(family: str) -> tuple[Any, dict[str, Any]]:
    """A model, and its prompt as embeddings that hold the features already, as its decoder gets them."""
    case, model = CASES[family], model_of(family, "sdpa")
    inputs = case.batch(model, 2, "left").inputs
    entered: list[torch.Tensor] = []
    hook = model.get_decoder().register_forward_pre_hook(
        lambda module, args, kwargs: entered.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    model(**inputs)
    hook.remove()
    return model, {"inputs_embeds": entered[0], "attention_mask": inputs["attention_mask"]}


#: Families that turn pictures into tokens of their vocabulary.
DISCRETE = sorted({"emu3", "chameleon", "apertus1p5"} & set(CASES))


@pytest.mark.parametrize("family", DISCRETE)
@torch.no_grad()
def test_picture_tokens_in_place_are_refused(family: str) -> None:
    """What the model itself puts in the placeholders' places, given as ids."""
    case, model = CASES[family], model_of(family, "sdpa")
    inputs = case.batch(model, 2, "left").inputs
    pictures, ids = adapter_for(model).picture_ids, inputs["input_ids"]
    ids = torch.where(torch.isin(ids, torch.tensor(case.visual_ids)), pictures[ids % len(pictures)], ids)
    with tp.apply(model, fastv()), pytest.raises(UnsupportedFeatureError, match=r"tokens of input_ids .* are no text"):
        model(input_ids=ids, attention_mask=inputs["attention_mask"])


@pytest.mark.parametrize("family", [*CORE, *(name for name in DISCRETE if name != "chameleon")])
@pytest.mark.each("family")
@torch.no_grad()
def test_features_in_place_are_refused(family: str) -> None:
    model, inputs = in_place(family)
    with (
        tp.apply(model, fastv()),
        pytest.raises(UnsupportedFeatureError, match=r"are no text: visual features seem to be in place.*the pixels"),
    ):
        model(**inputs)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("padding", ["none", "left"])
@torch.no_grad()
def test_text_is_text(family: str, padding: Any) -> None:
    """Whatever stands in rows that are padding."""
    case, model = CASES[family], model_of(family, "sdpa")
    inputs = case.batch(model, 2, padding, variant="text").inputs
    given = embedded(model, {name: inputs[name] for name in ("input_ids", "attention_mask")})
    given["inputs_embeds"][inputs["attention_mask"] == 0] = 0.5
    with tp.apply(model, fastv()) as run:
        model(**given)
        assert run.report.reason == "not pruned: the prompt holds no visual tokens"


@torch.no_grad()
def test_features_in_a_later_turn_are_refused() -> None:
    """On a cache that was pruned, and on one that was not."""
    case, model = CASES["llava"], model_of("llava", "sdpa")
    features = in_place("llava")[1]["inputs_embeds"]
    for variant in ("image", "text"):
        inputs = case.batch(model, 2, "none", variant=variant).inputs  # type: ignore[arg-type]
        with tp.apply(model, fastv()):
            cache = model(**inputs)[CACHE]
            with pytest.raises(UnsupportedFeatureError, match="are no text"):
                model(inputs_embeds=features, **{CACHE: cache})


@torch.no_grad()
def test_an_image_in_a_later_turn() -> None:
    """Its placeholders may be given as their embeddings, on a pruned cache, too."""
    case, model = CASES["llava"], model_of("llava", "sdpa")
    inputs = case.batch(model, 2, "none").inputs
    mask = torch.cat([inputs["attention_mask"]] * 2, 1)
    logits = []
    for turn in (inputs, embedded(model, inputs)):
        with tp.apply(model, fastv()) as run:
            cache = model(**inputs)[CACHE]
            logits.append(model(**{**turn, "attention_mask": mask}, **{CACHE: cache}).logits)
        assert run.report.after == [5, 5]
        assert run.report.cached == [26, 15, 15, 15]
    assert torch.equal(*logits)


@pytest.mark.parametrize("given", ["ids", "embeddings"])
@torch.no_grad()
def test_a_rebuilt_cache_is_refused(given: str) -> None:
    """Where all layers are pruned, only the mask tells that the cache lost tokens."""
    case, model = CASES["llava"], model_of("llava", "sdpa")
    inputs = case.batch(model, 2, "none").inputs
    step = {"input_ids": torch.tensor([[9], [9]])}
    mask = torch.cat([inputs["attention_mask"], torch.ones(2, 1, dtype=torch.long)], 1)
    method = tp.Method(
        layers={"name": "fixed", "layers": [0]},
        pruner={"name": "topk", "scorer": {"name": "random", "seed": 0}},
        budget={"name": "keep_count", "tokens": 5},
    )
    with tp.apply(model, method):
        rebuilt = DynamicCache()
        for number, layer in enumerate(model(**inputs)[CACHE].layers):
            rebuilt.update(layer.keys, layer.values, number)
        with pytest.raises(UnsupportedFeatureError, match="rebuilt from a pruned one"):
            model(**(step if given == "ids" else embedded(model, step)), attention_mask=mask, **{CACHE: rebuilt})


@torch.no_grad()
def test_a_large_vocabulary_is_read_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tokenprune.adapters.layout._TOKENS_AT_ONCE", 64)  # of 200
    case, model = CASES["gemma3"], model_of("gemma3", "sdpa")  # its embeddings are scaled
    inputs = embedded(model, case.batch(model, 2, "left").inputs)
    with tp.apply(model, fastv()) as run:
        model(**inputs)
    assert run.report.after == [5, 5]
