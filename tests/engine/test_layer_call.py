"""One decoder layer's call: arguments by position and by name, and layers that name them otherwise."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import DynamicCache

import tokenprune as tp
from tests.support.tiny.core import CACHE
from tests.support.tiny.llava import llava_case
from tokenprune.adapters.layer_signature import LayerSignature
from tokenprune.engine.layer_call import LayerCalls


class Usual(nn.Module):
    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None, past: object = None) -> Tensor:
        return hidden_states


class Other(nn.Module):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return x


def test_a_mask_given_by_position_is_there_once() -> None:
    """XGLM passes the mask by position: with the cut mask by name, too, its layer would get two."""
    layer = Usual()
    calls = LayerCalls(layer, LayerSignature())
    hidden, mask, cut = torch.zeros(1, 2, 3), torch.ones(1, 2), torch.ones(1, 1)
    by_name = {"hidden_states": hidden, "attention_mask": mask}
    ways: list[tuple[tuple[Tensor, ...], dict[str, Tensor]]] = [
        ((hidden, mask), {}),
        ((hidden,), {"attention_mask": mask}),
        ((), by_name),
    ]
    for args, kwargs in ways:
        others = calls.others(args, kwargs)
        assert calls.hidden(args, kwargs) is hidden
        assert others == {"attention_mask": mask}
        assert layer(hidden, **{**others, "attention_mask": cut}) is hidden


def test_other_names() -> None:
    layer = Other()
    calls = LayerCalls(layer, LayerSignature(hidden_states="x", attention_mask="mask"))
    hidden, mask = torch.zeros(1, 2, 3), torch.ones(1, 2)
    assert calls.hidden((), {"x": hidden}) is hidden
    assert calls.others((hidden, mask), {}) == {"mask": mask}
    assert calls.others((hidden,), {"mask": mask}) == {"mask": mask}


def test_a_cache_is_found_by_its_class() -> None:
    calls = LayerCalls(Usual(), LayerSignature())
    cache = DynamicCache()
    assert calls.cache({"past": cache}) is cache
    assert calls.cache({CACHE: cache}) is cache
    assert calls.cache({}) is None


@torch.no_grad()
def test_llava_around_xglm() -> None:
    """Its decoder gives the mask by position. With all visual tokens dropped it computes what the text alone gives."""
    case = llava_case(
        "llava_xglm",
        {
            "model_type": "xglm",
            "vocab_size": 200,
            "d_model": 32,
            "ffn_dim": 64,
            "num_layers": 3,
            "attention_heads": 4,
            "max_position_embeddings": 256,
        },
    )
    model = case.build("eager")
    inputs = case.batch(model, 1, "none").inputs
    ids = inputs["input_ids"]
    positions = torch.arange(ids.shape[1])[None]
    text = ids[0] != case.visual_ids[0]
    method = tp.Method(
        layers={"name": "fixed", "layers": [0]},
        pruner={"name": "topk", "scorer": "random"},
        budget={"name": "drop_all"},
    )
    with tp.apply(model, method):
        output = model(**inputs, position_ids=positions)
        step = model(input_ids=torch.tensor([[9]]), **{CACHE: output[CACHE]}, position_ids=positions[:, -1:] + 1)
    alone = model(input_ids=ids[:, text], position_ids=positions[:, text])
    expected = model(input_ids=torch.tensor([[9]]), **{CACHE: alone[CACHE]}, position_ids=positions[:, -1:] + 1)
    torch.testing.assert_close(output.logits, alone.logits, atol=1e-5, rtol=0)
    torch.testing.assert_close(step.logits, expected.logits, atol=1e-5, rtol=0)
