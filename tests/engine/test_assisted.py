"""Assisted decoding and prompt lookup write what greedy decoding writes, on every kind of cache that can be cropped."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import DynamicCache, PreTrainedModel, StaticCache

import tokenprune as tp
from tests.support import matrix
from tests.support.matrix import difference
from tests.support.oracle import Inputs, oracle_generate_logits, tolerance
from tests.support.simple import fastv, pair
from tests.support.tiny import CASES
from tests.support.tiny.core import CACHE, TRANSFORMERS
from tokenprune.errors import UnsupportedFeatureError

NEW = 12
FAMILIES = ("llava", "qwen2_5_vl", "qwen3_vl", "internvl", "llava_next")


def generate(model: PreTrainedModel, inputs: Inputs, **more: Any) -> Any:
    return model.generate(
        **inputs, max_new_tokens=NEW, min_new_tokens=NEW, output_logits=True, return_dict_in_generate=True, **more
    )


def forwards(model: PreTrainedModel, widths: list[int]) -> Any:
    """Note how many tokens each forward of the decoder reads."""
    layer = model.get_decoder().layers[0]
    return layer.register_forward_pre_hook(
        lambda module, args, kwargs: widths.append((args[0] if args else kwargs["hidden_states"]).shape[1]),
        with_kwargs=True,
    )


def repetitive(inputs: Inputs, visual_ids: Any) -> Inputs:
    """The prompt with text that repeats itself, so that lookups find something."""
    ids = inputs["input_ids"].clone()
    text = ~torch.isin(ids, torch.tensor(visual_ids)) & (ids < 100) & (ids > 5)
    ids[text] = 7
    return {**inputs, "input_ids": ids}


@pytest.mark.parametrize("positions", ["original", "renumbered"])
@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_prompt_lookup_is_greedy(name: str, positions: str) -> None:
    """Its logits are the oracle's; some forwards verify several tokens, and the prompt comes alone."""
    case, model = CASES[name], matrix.model_of(name, "sdpa")
    inputs = repetitive(case.batch(model, 1, "none", seed=2).inputs, case.visual_ids)
    how = matrix.method([1, 2], matrix.budget_of("image"), positions=positions)
    with tp.apply(model, how) as run:
        run.annotate(sample_ids=[0])
        greedy = generate(model, inputs)
        run.annotate(sample_ids=[0])
        widths: list[int] = []
        handle = forwards(model, widths)
        looked = generate(model, inputs, prompt_lookup_num_tokens=3)
        handle.remove()
        stages = matrix.stages_of(run)
    assert torch.equal(looked.sequences, greedy.sequences)
    assert widths[0] == inputs["input_ids"].shape[1]
    assert max(widths[1:]) > 1
    ours, limit = torch.stack(looked.logits, 1), tolerance(greedy.logits[0])
    assert difference(ours, torch.stack(greedy.logits, 1)) <= limit
    if positions == "original":
        new = looked.sequences[:, -NEW:]
        expected = oracle_generate_logits(model, inputs, new, stages, case.visual_ids, case.appended)
        assert difference(ours, expected) <= tolerance(expected)


@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("drafts", ["its own weights", "other weights"])
@torch.no_grad()
def test_an_assistant_model_changes_no_token(drafts: str, cut: bool) -> None:
    """One that is right often and one that is wrong often: many tokens are accepted, and many taken back."""
    model, inputs = pair(batch=1, padding="none")
    other = pair()[0]
    if drafts == "other weights":
        torch.manual_seed(7)
        for weight in other.parameters():
            weight.add_(torch.randn_like(weight) * 0.02)
    how = tp.Method(
        layers={"name": "fixed", "layers": [2]},
        pruner={"name": "topk", "scorer": "fastv"},
        budget={"name": "keep_count", "tokens": 5},
        cut_earlier_caches=cut,
    )
    with tp.apply(model, how) as run:
        greedy, kept = generate(model, inputs), run.stages[0].kept
        helped = generate(model, inputs, assistant_model=other)
        assert torch.equal(run.stages[0].kept, kept)  # by the attention of the prompt's last token, not of a candidate
    assert torch.equal(helped.sequences, greedy.sequences)
    assert difference(torch.stack(helped.logits, 1), torch.stack(greedy.logits, 1)) <= tolerance(greedy.logits[0])


@pytest.mark.parametrize("static", [False, True])
@torch.no_grad()
def test_a_crop_goes_back(static: bool) -> None:
    """Tokens behind the prompt may be taken off, and others put there."""
    if static and TRANSFORMERS < (5, 18):
        pytest.skip("static layers cannot be cropped")
    model, inputs = pair(batch=2, padding="left")
    prompt = inputs["input_ids"].shape[1]

    def step(cache: Any, token: int, past: int) -> torch.Tensor:
        mask = torch.cat([inputs["attention_mask"], torch.ones(2, past + 1, dtype=torch.long)], 1)
        places = mask.sum(1, keepdim=True) - 1
        ids = torch.full((2, 1), token)
        return model(input_ids=ids, attention_mask=mask, position_ids=places, **{CACHE: cache}).logits

    with tp.apply(model, fastv([1, 2], name="keep_ratio", ratio=0.4)):
        text: Any = model.config.get_text_config()
        cache: Any = StaticCache(config=text, max_cache_len=prompt + 9) if static else DynamicCache(config=text)
        model(**inputs, **{CACHE: cache})
        expected = [step(cache, token, past) for past, token in enumerate((5, 6))]
        cache.crop(-2)
        step(cache, 9, 0)
        cache.crop(-1)
        got = [step(cache, token, past) for past, token in enumerate((5, 6))]
        assert difference(torch.cat(got), torch.cat(expected)) <= 1e-6
        with pytest.raises(UnsupportedFeatureError, match=r"cannot be cropped by 3 tokens: 2 follow its prompt"):
            cache.crop(-3)


def test_candidates_of_the_models_own_layers_are_refused() -> None:
    model, inputs = pair(batch=1, padding="none")
    with tp.apply(model, fastv()), pytest.raises(UnsupportedFeatureError, match="EarlyExitCandidateGenerator"):
        generate(model, inputs, assistant_early_exit=2)


@torch.no_grad()
def test_a_window_is_refused_by_name() -> None:
    case = CASES["gemma3"]
    model = case.build()
    inputs = case.batch(model, 1, "none").inputs
    how = matrix.method([1], matrix.budget_of("image"))
    with tp.apply(model, how), pytest.raises(UnsupportedFeatureError, match="sliding window"):
        generate(model, inputs, prompt_lookup_num_tokens=3)
