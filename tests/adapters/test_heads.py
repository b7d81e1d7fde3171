"""Models whose heads pick rows by position: refused unless they generate, whatever wraps them."""

from __future__ import annotations

from typing import Any

import peft
import pytest
import torch
import transformers as tf
from torch import nn
from transformers import PreTrainedModel

import tokenprune as tp
from tests.support.tiny import CASES
from tests.support.tiny.gemma import gemma3_model, paligemma_model
from tokenprune.adapters import adapter_for
from tokenprune.errors import UnsupportedModelError

HALF = tp.Method.from_dict(
    {
        "layers": {"name": "fixed", "layers": [1]},
        "pruner": {"name": "topk", "scorer": "random"},
        "budget": {"name": "keep_ratio", "ratio": 0.5},
    }
)


def sequence_classifier() -> PreTrainedModel:
    """transformers' own head: it reads the last position that is no padding."""
    return tf.Gemma3ForSequenceClassification(gemma3_model().config)


def image_classifier() -> PreTrainedModel:
    """A model that generates, inside one that does not."""
    return tf.ShieldGemma2ForImageClassification(
        tf.ShieldGemma2Config(**gemma3_model().config.to_dict(), yes_token_index=20, no_token_index=21)
    )


def retriever() -> PreTrainedModel:
    """An embedding of every position, weighted by the unpruned mask."""
    return tf.ColPaliForRetrieval(tf.ColPaliConfig(vlm_config=paligemma_model().config, embedding_dim=8))


def visual_retriever() -> PreTrainedModel:
    """The same on a family that computes its features outside the base model."""
    return tf.ColQwen2ForRetrieval(tf.ColQwen2Config(vlm_config=CASES["qwen2_vl"].build().config, embedding_dim=8))


class TokenClassifier(tf.LlavaPreTrainedModel):
    """A label for every position, as users write it."""

    def __init__(self, config: tf.LlavaConfig) -> None:
        super().__init__(config)
        self.model = tf.LlavaModel(config)
        self.score = nn.Linear(config.text_config.hidden_size, 3)

    def forward(self, **inputs: Any) -> torch.Tensor:
        return self.score(self.model(**inputs).last_hidden_state)


class Reward(tf.LlavaPreTrainedModel):
    """A reward on a model that generates, under a name that the class does not tell (base_model_prefix)."""

    def __init__(self, config: tf.LlavaConfig) -> None:
        super().__init__(config)
        self.policy = tf.LlavaForConditionalGeneration(config)
        self.score = nn.Linear(config.text_config.hidden_size, 1)

    def get_decoder(self) -> nn.Module:
        return self.policy.get_decoder()


class FlatReward(tf.LlavaModel):
    """A reward that is built like a base model: only what it returns tells."""

    def __init__(self, config: tf.LlavaConfig) -> None:
        super().__init__(config)
        self.score = nn.Linear(config.text_config.hidden_size, 1)

    def forward(self, **inputs: Any) -> Any:
        output = super().forward(**inputs)
        return (self.score(output.last_hidden_state[:, -1]), output.past_key_values)


class OwnLoop(tf.LlavaPreTrainedModel):
    """A model that generates in a way of its own, without transformers' ``GenerationMixin``."""

    def __init__(self, config: tf.LlavaConfig) -> None:
        super().__init__(config)
        self.model = tf.LlavaModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size)

    def forward(self, **inputs: Any) -> Any:
        return self.lm_head(self.model(**inputs).last_hidden_state[:, -1:])

    def generate(self, **inputs: Any) -> Any:
        return self(**inputs, use_cache=False).argmax(-1)


def llava_config() -> tf.LlavaConfig:
    config = CASES["llava"].build().config
    assert isinstance(config, tf.LlavaConfig)
    return config


HEADS = {
    "sequence classification": (sequence_classifier, "Gemma3Model"),
    "image classification": (image_classifier, "Gemma3ForConditionalGeneration"),
    "retrieval": (retriever, "PaliGemmaModel"),
    "retrieval, features outside": (visual_retriever, "Qwen2VLModel"),
    "token classification": (lambda: TokenClassifier(llava_config()), "LlavaModel"),
    "reward": (lambda: Reward(llava_config()), "LlavaForConditionalGeneration"),
}
WRAPPERS = {
    "plain": lambda model: model,
    "PEFT": lambda model: peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"])),
    "compiled": lambda model: torch.compile(model, backend="eager"),
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("head", HEADS)
def test_heads_are_refused_when_the_method_is_applied(head: str, wrapper: str) -> None:
    make, inner = HEADS[head]
    model = make()
    with (
        pytest.raises(UnsupportedModelError, match=f"{type(model).__name__} puts a head on {inner}.*apply the method"),
        tp.apply(WRAPPERS[wrapper](model), HALF),
    ):
        pass


def test_a_head_that_only_its_output_shows() -> None:
    torch.manual_seed(0)
    model = FlatReward(llava_config()).eval()
    inputs = CASES["llava"].inputs(model)
    with torch.no_grad(), tp.apply(model, HALF), pytest.raises(UnsupportedModelError, match="FlatReward puts a head"):
        model(**inputs)


@pytest.mark.parametrize("family", ["llava", "gemma3", "qwen2_vl"])
def test_the_base_model_runs_as_its_head_was_told(family: str) -> None:
    """What the error advises: the base model alone, whose rows are those of the model that generates."""
    model = CASES[family].build()
    base = tf.AutoModel.from_config(model.config).eval()
    base.load_state_dict(model.base_model.state_dict())
    inputs = CASES[family].inputs(model)
    with torch.no_grad(), tp.apply(model, HALF):
        expected = model(**inputs).logits
    with torch.no_grad(), tp.apply(base, HALF) as run:
        hidden = base(**inputs).last_hidden_state
    rows = run.stages[-1].rows
    assert rows is not None
    assert hidden.shape[:2] == rows.shape
    torch.testing.assert_close(model.lm_head(hidden), expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", CASES)
def test_models_that_generate_and_base_models_are_not_taken_for_heads(name: str) -> None:
    model = CASES[name].build()
    for one in (model, model.base_model):
        assert adapter_for(one).visual_ids


@torch.no_grad()
def test_a_model_that_generates_in_its_own_way_is_no_head() -> None:
    model = OwnLoop(llava_config()).eval()
    with tp.apply(model, HALF) as run:
        assert model.generate(**CASES["llava"].inputs(model)).shape == (2, 1)
    assert run.stages[0].after == [8, 8]


def test_a_classifier_around_a_model_that_generates_reads_its_last_row() -> None:
    """What the error advises for it: the head reads the logits of the last position, and text stays there."""
    torch.manual_seed(0)
    model = image_classifier().eval()
    inputs = CASES["gemma3"].inputs(model)
    with torch.no_grad(), tp.apply(model.model, HALF) as run:
        ours = model(**inputs).logits
    with torch.no_grad(), tp.apply(model.model, HALF):  # another block numbers its samples from 0 again
        left = model.model(**inputs).logits[:, -1]
    assert run.stages[0].after == [8, 8]
    expected = left[:, [model.yes_token_index, model.no_token_index]]
    torch.testing.assert_close(ours, expected, rtol=0, atol=0)
