"""A KV cache that the engine does not see is an error, never a generation that is silently wrong or unpruned."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from transformers import DynamicCache, LlavaForConditionalGeneration
from transformers.modeling_outputs import CausalLMOutput

import tokenprune as tp
from tests.support.simple import fastv, pair
from tests.support.tiny import CASES
from tests.support.tiny.core import CACHE
from tokenprune.adapters import adapter_for
from tokenprune.engine.trials.fidelity import UnprunedBatch
from tokenprune.errors import UnsupportedFeatureError

TOKEN = torch.tensor([[9], [9]])


class Holder:
    """Hides a cache from whoever looks for one."""

    def __init__(self, cache: Any) -> None:
        self.cache = cache


class Hiding(LlavaForConditionalGeneration):
    """A model of a future transformers: its cache travels in something that nobody knows."""

    hides_output = False

    def forward(self, *args: Any, held: Holder | None = None, **kwargs: Any) -> Any:
        cache = {} if held is None else {CACHE: held.cache}
        output = super().forward(*args, **kwargs, **cache)
        return CausalLMOutput(logits=output.logits) if self.hides_output else output


def hiding(hides_output: bool = False) -> tuple[Any, dict[str, Any]]:
    """The model, and inputs."""
    model, inputs = pair()
    model.__class__ = Hiding
    model.hides_output = hides_output
    return model, inputs


@pytest.mark.parametrize("with_mask", [True, False], ids=["mask", "no mask"])
@torch.no_grad()
def test_a_step_on_a_pruned_cache_that_is_hidden(with_mask: bool) -> None:
    model, inputs = hiding()
    mask = torch.cat([inputs["attention_mask"], torch.ones(2, 1, dtype=torch.long)], 1)
    with tp.apply(model, fastv()):
        held = Holder(model(**inputs)[CACHE])
        with pytest.raises(UnsupportedFeatureError, match="no KV cache that is" if with_mask else "not among the arg"):
            model(input_ids=TOKEN, held=held, **({"attention_mask": mask} if with_mask else {}))


@pytest.mark.parametrize("use_cache", [None, True])
@pytest.mark.parametrize("with_mask", [True, False], ids=["mask", "no mask"])
@torch.no_grad()
def test_a_step_on_a_cache_that_the_prefill_hid(use_cache: bool | None, with_mask: bool) -> None:
    """Its layers do not know which rows they hold. The prefill alone is right: some models drop their cache."""
    model, inputs = hiding(hides_output=True)
    asked = {} if use_cache is None else {"use_cache": use_cache}
    mask = torch.cat([inputs["attention_mask"], torch.ones(2, 1, dtype=torch.long)], 1)
    with tp.apply(model, fastv()) as run:
        cache = DynamicCache(config=model.config.get_text_config())
        model(**inputs, **asked, held=Holder(cache))
        assert run.report.after == [5, 5]
        with pytest.raises(UnsupportedFeatureError, match="no KV cache that is a transformers Cache"):
            model(input_ids=TOKEN, held=Holder(cache), **({"attention_mask": mask} if with_mask else {}))


@torch.no_grad()
def test_one_token_of_text_is_a_prompt_elsewhere() -> None:
    """Where nothing was pruned before, or after another prompt."""
    model, inputs = hiding(hides_output=True)
    with tp.apply(model, fastv()) as run:
        model(input_ids=TOKEN)
        model(**inputs)
        model(input_ids=TOKEN.repeat(1, 2))
        model(input_ids=TOKEN)
        assert run.report.reason == "not pruned: the prompt holds no visual tokens"


@torch.no_grad()
def test_no_cache_is_fine_where_none_is_asked_for() -> None:
    model, inputs = pair()
    with tp.apply(model, fastv()) as run:
        assert CACHE not in model(**inputs, use_cache=False)
    assert run.report.after == [5, 5]


@pytest.mark.parametrize("family", ["idefics3", "llava_next", "mistral3"])
@torch.no_grad()
def test_no_cache_is_fine_where_the_config_of_the_whole_model_asks_for_none(family: str) -> None:
    """Its language model's config says otherwise, and is not asked."""
    model = CASES[family].build()
    model.config.use_cache = False
    assert model.config.get_text_config().use_cache
    with tp.apply(model, fastv()) as run:
        assert CACHE not in model(**CASES[family].inputs(model))
        assert run.report.after < run.report.before
        model(input_ids=TOKEN)  # a prompt of its own, and no step on a cache that was hidden


@pytest.mark.parametrize("name", ["cache", "past_key_values"])
@torch.no_grad()
@pytest.mark.filterwarnings("ignore:.*past_key_values:FutureWarning")
def test_both_names_of_a_cache_are_followed(name: str) -> None:
    """What this version of transformers takes: models of 5.24 take both."""
    if name == "cache" and CACHE != "cache":
        pytest.skip("models of this version of transformers take past_key_values only")
    model, inputs = pair()
    with tp.apply(model, fastv()):
        expected = model(input_ids=TOKEN, **{CACHE: model(**inputs)[CACHE]}).logits
        assert torch.equal(model(input_ids=TOKEN, **{name: model(**inputs)[CACHE]}).logits, expected)


def test_our_own_calls_warn_of_nothing() -> None:
    """Prefill, decode steps, all ways to generate and fidelity, with every FutureWarning an error."""
    model, inputs = pair()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("error", FutureWarning)
        with tp.apply(model, fastv()):
            model.generate(**inputs, max_new_tokens=3, do_sample=False)
            model.generate(**inputs, max_new_tokens=3, do_sample=False, use_cache=False)
            model.generate(**inputs, max_new_tokens=3, do_sample=False, num_beams=2)
        unpruned = UnprunedBatch(adapter_for(model), inputs, [1], tokens=3)
        unpruned.fidelity(fastv(), [1])
