"""What a turn is told about the turns before it, counted by hand; calls that cannot go on behind them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

import tokenprune as tp
from tests.support.matrix import method
from tests.support.simple import CASE, fastv
from tests.support.tiny import CASES
from tests.support.tiny.core import CACHE, TRANSFORMERS
from tests.support.turns import Talk
from tests.support.windows import wide_gemma
from tokenprune.adapters.layout import VisualLayout
from tokenprune.engine.cache import mark
from tokenprune.engine.caches.rows import CacheOwner, Rows
from tokenprune.engine.earlier import EarlierTurns
from tokenprune.engine.method import lengths_of
from tokenprune.engine.quotas import Lengths
from tokenprune.errors import UnsupportedFeatureError

COUNT = {"name": "keep_count", "tokens": 5}


def two_images(name: str = "llava", model: Any = None) -> tuple[Any, dict[str, Tensor], dict[str, Tensor]]:
    """A model, and the calls of two turns with a picture each; one sample, no padding."""
    model = CASES[name].build() if model is None else model
    talk = Talk.of(CASES[name], model, ["image", "image"], batch=1)
    first, second = map(talk.call, talk.turns)
    return model, first, second


def test_tokens_of_each_sample_are_counted_without_padding() -> None:
    """Six tokens came before: the prompt of four, of which layer 1 lost some, and two more.

    Sample 1 begins with two tokens of padding, of which layer 1 kept one. The turn of sample 0 begins with one. Two
    tokens of each turn are visual.
    """
    mask = torch.tensor([[1, 1, 1, 1, 1, 1, 0, 1, 1, 1], [0, 0, 1, 1, 1, 1, 1, 1, 1, 1]])
    visual = torch.tensor([[False, True, True, False], [False, True, True, False]])
    layout = VisualLayout(visual, visual.long() - 1)
    cache = DynamicCache()
    for layer in (0, 1):
        states = torch.zeros(2, 1, 6 - 2 * layer, 4)
        cache.update(states, states, layer)
    mark(cache, 1, Rows(torch.tensor([[0, 3], [1, 3]]), 4, False, CacheOwner(None)))
    call = {"attention_mask": mask}
    earlier = EarlierTurns.of(cache, 6, call, 4, flash=False)
    held = [(6, 4), (4, 3)]
    assert [earlier.held(layer) for layer in (0, 1)] == [6, 4]
    assert earlier.cached(2, 2) == held
    assert lengths_of(call, layout, earlier, 2) == [Lengths(1, held[0]), Lengths(2, held[1])]


@torch.no_grad()
def test_a_layer_that_lost_nothing_gets_the_models_own_mask() -> None:
    """Not a copy: behind a long conversation a mask is large."""
    model = CASE.build()
    talk = Talk.of(CASE, model, ["text", "image"])
    masks: list[Tensor] = []
    with tp.apply(model, method([1, 2], {"name": "keep_schedule", "tokens": [16, 5]})):
        cache = model(**talk.call(talk.turns[0]))[CACHE]
        for layer in model.get_decoder().layers[:3]:
            note = lambda _, args, kwargs: masks.append(kwargs["attention_mask"])  # noqa: E731
            layer.register_forward_pre_hook(note, with_kwargs=True)
        model(**talk.call(talk.turns[1]), **{CACHE: cache})
    assert masks[1] is masks[0]
    assert masks[2].shape[-1] == masks[0].shape[-1] - 11


# ---- the conversation counts, not the turn alone


@torch.no_grad()
def test_renumbered_conversations_longer_than_a_window_are_refused() -> None:
    width = two_images("gemma3")[1]["input_ids"].shape[1]
    model, first, second = two_images("gemma3", wide_gemma(2 * width - 1))
    with tp.apply(model, method([0], COUNT, positions="renumbered")):
        cache = model(**first)[CACHE]
        with pytest.raises(UnsupportedFeatureError, match=f"renumbered with {2 * width} tokens, and layers whose"):
            model(**second, **{CACHE: cache})


@torch.no_grad()
def test_attention_that_scales_by_position_is_refused_behind_a_long_conversation() -> None:
    """As that of Llama 4 does, from token 40 on; each turn has 26."""
    model, first, second = two_images()
    attention = model.get_decoder().layers[2].self_attn
    attention.attn_temperature_tuning, attention.use_rope, attention.floor_scale = True, False, 40
    with tp.apply(model, fastv()):
        cache = model(**first)[CACHE]
        with pytest.raises(UnsupportedFeatureError, match="layer 2 scales attention by position in a prompt of 52"):
            model(**second, **{CACHE: cache})


@torch.no_grad()
def test_a_mask_of_more_tokens_than_the_conversation_is_refused() -> None:
    model, first, second = two_images()
    with tp.apply(model, fastv()):
        cache = model(**first)[CACHE]
        longer = {**second, "attention_mask": torch.ones(1, 53, dtype=torch.long)}
        with pytest.raises(UnsupportedFeatureError, match="mask covers 53 tokens, and the KV cache and the input hold"):
            model(**longer, **{CACHE: cache})


@pytest.mark.skipif(TRANSFORMERS < (5, 23), reason="images are not encoded before the chunks")
@torch.no_grad()
def test_the_first_chunk_of_a_turn_may_hold_its_images() -> None:
    """`generate` is given the ids of the whole conversation, and cuts what is new into chunks.

    Padded, so that the mask is not dropped: it tells `generate` and the refusal that the ids are those of all turns.
    """
    model = CASE.build()
    talk = Talk.of(CASE, model, ["image", "image"], "left", batch=2)
    first, second = map(talk.call, talk.turns)
    asked = {**second, "input_ids": talk.whole["input_ids"]}
    del asked["position_ids"]
    told = []
    for more in ({}, {"prefill_chunk_size": 22}):
        with tp.apply(model, method([1], COUNT)) as run:
            cache = model(**first)[CACHE]
            out = model.generate(**asked, **{CACHE: cache}, max_new_tokens=4, **more)
            told.append((out.tolist(), run.stages[0].kept.tolist()))
    assert told[0] == told[1]
