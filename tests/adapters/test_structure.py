"""Models that are refused because of how they are built, and what the refusals advise."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy
from transformers import PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

import tokenprune as tp
from tests.support.tiny import CASES
from tests.support.tiny.llava import llava_with
from tests.support.tiny.parts import text
from tokenprune.adapters import adapter_for
from tokenprune.errors import UnsupportedFeatureError, UnsupportedModelError


def keep_five(scorer: str) -> tp.Method:
    """Keep the five tokens with the highest score before layer 2."""
    return tp.Method.from_dict(
        {
            "layers": {"name": "fixed", "layers": [2]},
            "pruner": {"name": "topk", "scorer": scorer},
            "budget": {"name": "keep_count", "tokens": 5},
        }
    )


def moshi() -> PreTrainedModel:
    """LLaVA around Moshi's language model, whose attention computes its own rotary embedding."""
    return llava_with(text("moshi", head_dim=16, ffn_dim=128, num_codebooks=2)).eval()


def test_attention_that_computes_its_own_rotary_embedding() -> None:
    with (
        pytest.raises(UnsupportedModelError, match=r"MoshiAttention.*position_embeddings.*needs no attention"),
        tp.apply(moshi(), keep_five("fastv")),
    ):
        pass


def test_such_attention_is_pruned_by_a_method_that_needs_no_rows_of_it() -> None:
    model = moshi()
    ids = torch.tensor([[1, 5, *[model.config.image_token_id] * 16, 7]])
    with torch.no_grad(), tp.apply(model, keep_five("random")) as run:
        model(input_ids=ids, pixel_values=torch.randn(1, 3, 32, 32))
    assert run.stages[0].after == [5]


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    """A process group of this process alone."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'group'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore:FSDP is switching to use:UserWarning")
def test_layers_wrapped_by_fsdp(one_process: None) -> None:
    policy = functools.partial(transformer_auto_wrap_policy, transformer_layer_cls={LlamaDecoderLayer})
    model = FullyShardedDataParallel(
        CASES["llava"].build(), device_id=torch.device("cpu"), auto_wrap_policy=policy, use_orig_params=True
    )
    with pytest.raises(UnsupportedFeatureError, match=r"FullyShardedDataParallel.*unwrapped model.*fully_shard"):
        adapter_for(model)


class Wrapper(nn.Module):
    """What activation checkpointing and older sharding put around a layer."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args: object, **kwargs: object) -> object:
        return self.module(*args, **kwargs)


@pytest.mark.parametrize("layer", [0, 3])
def test_one_wrapped_layer_is_enough(layer: int) -> None:
    model = CASES["llava"].build()
    layers = model.get_decoder().layers
    layers[layer] = Wrapper(layers[layer])
    with pytest.raises(UnsupportedFeatureError, match=f"layer {layer} .*Wrapper.*unwrapped model"):
        adapter_for(model)
