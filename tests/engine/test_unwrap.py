"""Wrappers: what apply is given is not always what runs. It is pruned, or refused; never silently unpruned."""

from __future__ import annotations

from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn

import tokenprune as tp
from tests.support.simple import KEPT, fastv, pair, pruned_logits
from tests.support.tiny.core import CACHE
from tokenprune.errors import UnsupportedFeatureError, UnsupportedModelError


@torch.no_grad()
def test_a_peft_model_is_pruned() -> None:
    model, inputs = pair()
    wrapped = peft.get_peft_model(
        model, peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    )
    wrapped.eval()
    with tp.apply(model, fastv()):
        expected = model(**inputs).logits
        ids = model.generate(**inputs, max_new_tokens=3)
    for given in (wrapped, wrapped.base_model, model):
        with tp.apply(given, fastv()) as run:
            logits = wrapped(**inputs).logits
            assert run.report.after == [KEPT, KEPT]
            assert torch.equal(wrapped.generate(**inputs, max_new_tokens=3), ids)
        assert torch.equal(logits, expected)
    assert not torch.equal(expected, model(**inputs).logits[:, -expected.shape[1] :])


def test_prompt_learning_is_refused() -> None:
    class Soft(nn.Module):
        active_peft_config = type("Config", (), {"is_prompt_learning": True})()

        def get_base_model(self) -> nn.Module:
            return pair()[0]

    with pytest.raises(UnsupportedFeatureError, match="before the prompt"), tp.apply(Soft(), fastv()):
        pass


class DistributedDataParallel(nn.Module):
    """Stands for torch's: that one needs a process group."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)


class DataParallel(DistributedDataParallel):
    """Stands for torch's."""


@torch.no_grad()
def test_distributed_data_parallel_is_pruned_and_data_parallel_refused() -> None:
    model, inputs = pair()
    expected = pruned_logits(model, inputs)
    wrapped = DistributedDataParallel(model)
    with tp.apply(wrapped, fastv()):
        assert torch.equal(wrapped(**inputs).logits, expected)
    with pytest.raises(UnsupportedFeatureError, match="DataParallel"), tp.apply(DataParallel(model), fastv()):
        pass


def test_an_unknown_wrapper_is_refused() -> None:
    class Mine(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inside = pair()[0]

    with pytest.raises(UnsupportedModelError, match="Mine is not a transformers model"), tp.apply(Mine(), fastv()):
        pass


@torch.no_grad()
def test_the_inner_model_is_pruned_too() -> None:
    """``model.model(**inputs)``: the model without its head."""
    model, inputs = pair()
    with tp.apply(model, fastv()) as run:
        expected = model(**inputs, output_hidden_states=True).hidden_states[-1]
        states = model.model(**inputs)
        assert run.report.after == [KEPT, KEPT]
        assert torch.equal(states.last_hidden_state, expected)
        step = model.model(input_ids=torch.tensor([[7], [8]]), **{CACHE: states[CACHE]})
    assert step.last_hidden_state.shape[:2] == (2, 1)
    with tp.apply(model.model, fastv()):
        assert torch.equal(model.model(**inputs).last_hidden_state, expected)


@torch.no_grad()
def test_the_decoder_alone_is_refused() -> None:
    model, inputs = pair()
    embeds = model.get_input_embeddings()(inputs["input_ids"])
    with tp.apply(model, fastv()), pytest.raises(UnsupportedFeatureError, match="was called by itself"):
        model.model.language_model(inputs_embeds=embeds)
    assert model.model.language_model(inputs_embeds=embeds).last_hidden_state.shape == embeds.shape


@torch.no_grad()
def test_forward_by_name_is_pruned() -> None:
    """Wrappers call ``model.forward`` without the module's hooks."""
    model, inputs = pair()
    expected = pruned_logits(model, inputs)
    with tp.apply(model, fastv()):
        held = model.forward
        assert torch.equal(model.forward(**inputs).logits, expected)
    whole = held(**inputs).logits  # whoever kept the method calls the model itself
    assert torch.equal(whole, model(**inputs).logits)
    assert whole.shape[1] > expected.shape[1]


@torch.no_grad()
def test_layers_that_never_run_are_an_error() -> None:
    """A prompt with visual tokens after which not every stage was reached is an error, always."""
    model, inputs = pair()
    decoder = model.model.language_model
    copied = nn.ModuleList(list(decoder.layers))
    plain = decoder.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        layers, decoder.layers = decoder.layers, copied[:1]
        try:
            return plain(*args, **kwargs)
        finally:
            decoder.layers = layers

    decoder.forward = forward
    config: Any = decoder.config
    depth, config.num_hidden_layers = config.num_hidden_layers, 1
    with tp.apply(model, fastv([2])), pytest.raises(UnsupportedModelError, match=r"layer 2 .* never ran"):
        model(**inputs)
    config.num_hidden_layers = depth


@torch.no_grad()
def test_a_block_without_a_prompt_is_an_error() -> None:
    """A conversation that began before the block goes on unpruned: whoever asked for pruning hears of it."""
    model, inputs = pair()
    cache = model(**inputs)[CACHE]
    token = torch.tensor([[5], [6]])
    block = tp.apply(model, fastv())
    with pytest.raises(UnsupportedFeatureError, match=r"ran 2 times .* never read a prompt"), block:
        [model(input_ids=token, **{CACHE: cache}) for _ in range(2)]
    run = tp.apply(model, fastv())
    model(input_ids=token, **{CACHE: cache})
    with pytest.raises(UnsupportedFeatureError, match="labels"):  # a prompt that is refused is not read
        model(**inputs, labels=inputs["input_ids"], logits_to_keep=1)
    with pytest.raises(UnsupportedFeatureError, match="never read a prompt"):
        run.close()
    with tp.apply(model, fastv()):
        pass  # nothing ran: nothing to say


@torch.no_grad()
def test_one_call_inside_another() -> None:
    """Reentrancy: a hook of the caller's runs the model on other inputs while it is running."""
    model, inputs = pair()
    other = pair(seed=4)[1]
    expected, expected_other = pruned_logits(model, inputs), pruned_logits(model, other)
    nested: list[Tensor] = []
    with tp.apply(model, fastv()):

        def again(module: nn.Module, args: Any, output: Any) -> None:
            if not nested:
                nested.append(torch.empty(0))
                nested[0] = model(**other).logits

        handle = model.model.language_model.layers[2].register_forward_hook(again)
        logits = model(**inputs).logits
        handle.remove()
    assert torch.equal(logits, expected)
    assert torch.equal(nested[0], expected_other)


@torch.no_grad()
def test_a_layer_that_runs_twice_is_an_error() -> None:
    model, inputs = pair()
    layers = model.model.language_model.layers

    def again(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        handle.remove()
        module(*args, **kwargs)

    handle = layers[1].register_forward_hook(again, with_kwargs=True)
    with tp.apply(model, fastv()), pytest.raises(UnsupportedModelError, match="layer 1 ran twice"):
        model(**inputs)
