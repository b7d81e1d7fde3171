"""Closed-form FLOPs and cache bytes, against numbers counted elsewhere and against counted operations."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.tiny import CASES
from tokenprune.measure.flops import kv_cache_bytes, layer_flops, prefill_flops

LLAVA_7B = SimpleNamespace(hidden_size=4096, intermediate_size=11008, num_attention_heads=32, model_type="llama")


def test_llava_7b_at_636_tokens() -> None:
    """8.44955e12: what fvcore and torch's counter give for the decoder's layers (no output head)."""
    assert prefill_flops(LLAVA_7B, [636] * 32) == pytest.approx(8.44955e12, rel=1e-5)


def test_the_papers_formula() -> None:
    n, d, m = 576, 4096, 11008
    assert layer_flops(LLAVA_7B, n) == 8 * n * d**2 + 4 * n**2 * d + 6 * n * d * m


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "qwen3_vl", "gemma3", "paligemma", "llava_phi3"])
def test_against_torchs_counter(name: str) -> None:
    """Matrix products of the decoder, counted while it runs with eager attention."""
    model = CASES[name].build("eager")
    config = model.config.get_text_config()
    decoder = model.get_decoder()
    tokens = 23
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        decoder(inputs_embeds=torch.zeros(1, tokens, config.hidden_size), use_cache=False)
    counted = counter.get_total_flops()
    expected = prefill_flops(config, [tokens] * config.num_hidden_layers)
    # rotary frequencies are one outer product more
    assert counted == pytest.approx(expected, rel=0.01)


def test_cache_bytes_are_what_the_cache_holds() -> None:
    model = CASES["llava"].build()
    inputs = CASES["llava"].batch(model, 1, "none").inputs
    cache = model(**inputs).past_key_values
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    length = inputs["input_ids"].shape[1]
    assert kv_cache_bytes(model.config.text_config, [length] * 4, 4) == held
