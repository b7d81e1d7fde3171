"""Models that are refused because of how they are built, and what the refusals advise."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import transformers as tf
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy
from transformers import PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

import tokenprune as tp
from tests.adapters.test_adapters import HYBRID, NO_ROWS, READABLE, UNREADABLE, model_of
from tests.support.tiny import CASES
from tests.support.tiny.core import IMAGE
from tests.support.tiny.llava import llava_with
from tests.support.tiny.parts import CLIP, text
from tokenprune.adapters import adapter_for
from tokenprune.adapters.base import Adapter
from tokenprune.adapters.decoder_stack import DecoderStack
from tokenprune.adapters.generic import GenericAdapter
from tokenprune.adapters.image_video import ImageVideoAdapter
from tokenprune.core.call_arguments import named_parameters
from tokenprune.errors import UnsupportedFeatureError, UnsupportedModelError

# ---- how the decoder is built ---


def test_what_is_no_transformers_model() -> None:
    with pytest.raises(UnsupportedModelError, match="Linear is not a transformers model"):
        adapter_for(nn.Linear(2, 2))


def test_an_encoder_decoder() -> None:
    config = tf.Florence2Config(
        text_config={
            "model_type": "bart",
            "d_model": 32,
            "encoder_layers": 1,
            "decoder_layers": 1,
            "encoder_attention_heads": 2,
            "decoder_attention_heads": 2,
            "encoder_ffn_dim": 32,
            "decoder_ffn_dim": 32,
            "vocab_size": 100,
        },
        vision_config={
            "depths": [1, 1],
            "embed_dim": [16, 32],
            "num_heads": [2, 2],
            "num_groups": [2, 2],
            "patch_size": [7, 3],
            "patch_stride": [4, 2],
            "patch_padding": [3, 1],
            "patch_prenorm": [False, True],
            "projection_dim": 32,
        },
        image_token_id=90,
    )
    with pytest.raises(UnsupportedModelError, match="encoder-decoder"):
        adapter_for(tf.Florence2ForConditionalGeneration(config))


def test_a_language_model_without_images() -> None:
    with pytest.raises(UnsupportedModelError, match="names no visual token id"):
        adapter_for(tf.LlamaForCausalLM(tf.LlamaConfig(**text(None))))


def test_images_through_cross_attention() -> None:
    config = tf.MllamaConfig(
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_global_layers": 1,
            "attention_heads": 2,
            "image_size": 32,
            "patch_size": 8,
            "vision_output_dim": 64,
            "intermediate_layers_indices": [0],
            "max_num_tiles": 1,
            "supported_aspect_ratios": [[1, 1]],
        },
        text_config=text(None, cross_attention_layers=[1]),
        image_token_index=IMAGE,
    )
    with pytest.raises(UnsupportedModelError, match="cross-attention"):
        adapter_for(tf.MllamaForConditionalGeneration(config))


@pytest.mark.parametrize("name", sorted(HYBRID))
def test_hybrid_decoders_from_their_recurrent_layers_on(name: str) -> None:
    adapter = adapter_for(model_of(name))
    last = adapter.num_layers - 1
    with pytest.raises(
        UnsupportedModelError, match=r"(recurrent state|neighbouring tokens); it cannot be pruned exactly from there on"
    ):
        adapter.stack.check_exact(0)
    adapter.stack.check_exact(last)  # a full-attention layer: nothing recurrent follows
    with pytest.raises(UnsupportedModelError, match="has no attention"):
        adapter.stack.projections(0, frozenset({"query"}))
    with pytest.raises(UnsupportedModelError, match="has no attention"):
        adapter.stack.rotary(0)


def test_a_mamba_beside_the_attention() -> None:
    language = text(
        "falcon_h1",
        layers=2,
        head_dim=16,
        mamba_d_ssm=64,
        mamba_n_heads=4,
        mamba_d_head=16,
        mamba_d_state=8,
        mamba_expand=1,
    )
    config = tf.LlavaConfig(vision_config=CLIP, text_config=language, image_token_id=IMAGE, image_seq_length=16)
    adapter = adapter_for(tf.LlavaForConditionalGeneration(config))
    with pytest.raises(UnsupportedModelError, match=r"hybrid.* beside its attention"):
        adapter.stack.check_exact(1)


def test_an_encoder_that_reads_the_prompt_for_a_decoder() -> None:
    """Block diffusion: the config calls it no encoder-decoder model, and its decoder never sees a visual token."""
    config = tf.DiffusionGemmaConfig(
        text_config=text(None, head_dim=16, sliding_window=8, num_experts=4, top_k_experts=2, moe_intermediate_size=32),
        vision_config={"model_type": "gemma4_vision", "num_hidden_layers": 1},
        image_token_id=IMAGE,
    )
    with torch.device("meta"):
        model = tf.DiffusionGemmaForBlockDiffusion(config)
    assert not config.is_encoder_decoder
    with pytest.raises(UnsupportedModelError, match="encoder-decoder"):
        adapter_for(model)


@pytest.mark.parametrize(
    "kind, why",
    [
        ("indexed_attention", "by an index over all tokens"),
        ("qwen_sparse_attention", "by an index over all tokens"),
        ("heavily_compressed_attention", "blocks of tokens"),
        ("reference_sliding_attention", "from the end of the whole prompt"),
        ("conv", "neighbouring tokens"),
        ("linear_attention", "recurrent state"),
        ("hybrid_sliding", "beside its attention"),
        ("a_type_of_tomorrow", "is not plain attention"),
    ],
)
def test_layers_of_other_types(kind: str, why: str) -> None:
    """What a layer sees of dropped tokens must not depend on them; types that nobody knows are refused as well."""
    adapter = adapter_for(CASES["llava"].build())
    adapter.stack.check_exact(0)
    adapter.text_config.layer_types = ["full_attention"] * 3 + [kind]
    with pytest.raises(UnsupportedModelError, match=rf"layer 3 \({kind}\).*{why}"):
        adapter.stack.check_exact(1)


@pytest.mark.parametrize("name", ["indexer", "compressor"])
def test_an_index_that_the_config_does_not_tell_of(name: str) -> None:
    adapter = adapter_for(CASES["llava"].build())
    adapter.layers[2].self_attn.register_module(name, nn.Linear(1, 1))
    adapter.stack.check_exact(3)
    with pytest.raises(UnsupportedModelError, match=r"layer 2 .*index over all tokens"):
        adapter.stack.check_exact(1)


@pytest.mark.parametrize("setting", ["hc_mult", "hc_count", "altup_num_inputs"])
def test_several_streams_of_hidden_states(setting: str) -> None:
    adapter = adapter_for(CASES["llava"].build())
    setattr(adapter.text_config, setting, 4)
    with pytest.raises(UnsupportedModelError, match="several streams of hidden states"):
        adapter.stack.check_exact(3)


def test_layers_that_differ_in_their_number_of_heads() -> None:
    """Transformers raises where such a setting is read from the whole decoder's config."""
    adapter = adapter_for(model_of("step3p7"))
    assert [adapter.stack.num_heads(layer) for layer in range(6)] == [8, 8, 4, 8, 8, 4]
    with pytest.raises(RuntimeError, match="num_attention_heads"):
        _ = adapter.text_config.num_attention_heads


def test_layers_that_share_keys_and_values() -> None:
    with pytest.raises(UnsupportedModelError, match="shares keys and values between layers"):
        adapter_for(model_of("gemma4")).stack.check_exact(3)


@pytest.mark.parametrize("name", sorted(UNREADABLE))
def test_attention_of_another_make(name: str) -> None:
    adapter = adapter_for(model_of(name))
    adapter.stack.check_exact(0)
    with pytest.raises(UnsupportedModelError, match="reads hidden states"):
        adapter.stack.projections(1, frozenset({"query", "key"}))


@pytest.mark.parametrize("name", sorted(NO_ROWS & set(CASES)))
def test_attention_weights_of_another_make(name: str) -> None:
    with pytest.raises(UnsupportedModelError, match="cannot compute single attention rows"):
        adapter_for(model_of(name)).stack.check_attention_rows(1)


def test_norms_after_the_rotation_cannot_be_read() -> None:
    model = llava_with(text("hunyuan_v1_dense", head_dim=16))
    with pytest.raises(UnsupportedModelError, match="after the rotary embedding"):
        adapter_for(model).stack.projections(0, frozenset({"query"}))


def test_a_gate_beside_the_query_cannot_be_read() -> None:
    adapter = adapter_for(model_of("qwen3_5"))
    with pytest.raises(UnsupportedModelError, match="makes 128 features where 64 were expected"):
        adapter.stack.projections(3, frozenset({"query"}))


# ---- attention rows ---


@pytest.mark.parametrize("name", sorted(set(READABLE) - NO_ROWS))
def test_attention_that_is_given_its_rotary_embedding(name: str) -> None:
    adapter = adapter_for(model_of(name))
    for number, layer in enumerate(adapter.layers):
        if adapter.stack.attention(number) is not None:
            assert adapter.layer_signature.position_embeddings in named_parameters(layer.forward)


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
        pytest.raises(UnsupportedModelError, match=r"MoshiDecoderLayer.*position_embeddings.*needs no attention"),
        tp.apply(moshi(), keep_five("fastv")),
    ):
        pass


def test_such_attention_is_pruned_by_a_method_that_needs_no_rows_of_it() -> None:
    model = moshi()
    ids = torch.tensor([[1, 5, *[model.config.image_token_id] * 16, 7]])
    with torch.no_grad(), tp.apply(model, keep_five("random")) as run:
        model(input_ids=ids, pixel_values=torch.randn(1, 3, 32, 32))
    assert run.stages[0].after == [5]


# ---- wrapped layers ---


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


# ---- advice ---


class OwnTokenAdapter(GenericAdapter):
    """A family whose config names no visual token."""

    def find_visual_ids(self) -> tuple[int, ...]:
        return (7,)


def test_a_family_may_name_its_visual_token_itself() -> None:
    model = tf.LlamaForCausalLM(tf.LlamaConfig(**text(None)))
    with pytest.raises(UnsupportedModelError, match=r"overrides find_visual_ids\(\)"):
        GenericAdapter(model)
    layout = OwnTokenAdapter(model).locate({"input_ids": torch.tensor([[1, 7, 7, 3]])})
    assert layout is not None
    assert layout.mask.tolist() == [[False, True, True, False]]


class OwnDecoderAdapter(GenericAdapter):
    """A family that keeps its decoder elsewhere."""

    def find_decoder(self) -> nn.Module:
        return self.model.hidden_away[0]  # type: ignore[index, union-attr, return-value]


def test_a_family_may_find_its_decoder_itself() -> None:
    model: Any = CASES["llava"].build()
    decoder = model.get_decoder()
    model.hidden_away = [decoder]
    model.get_decoder = lambda: None
    model.model.language_model = nn.Identity()
    with pytest.raises(UnsupportedModelError, match=r"overrides find_decoder\(\)"):
        GenericAdapter(model)
    assert list(OwnDecoderAdapter(model).layers) == list(decoder.layers)


def test_advice_names_methods_that_exist() -> None:
    """Every error of the package that asks for an adapter names what it has to override."""
    advised = []
    for path in Path(tp.__file__).parent.rglob("*.py"):
        source = re.sub(r'"\n\s*f?"', "", path.read_text(encoding="utf-8"))
        for match in re.finditer(r"write an adapter([^\"]*)\"", source):
            names = re.findall(r"(\w+)\(\)|overrides (\w+)", match[1])
            assert names, f"{path.name}: {match[0]}"
            advised += [method or attribute for method, attribute in names]
    assert len(advised) > 4
    assert {name for name in advised if not hasattr(Adapter, name) and not hasattr(DecoderStack, name)} == set()


def test_the_page_lists_what_can_be_overridden() -> None:
    page = (Path(__file__).parents[2] / "docs" / "adapters.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`.*?`) \|", page, re.M)
    listed = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    used_by_the_engine = {
        "locate",
        "tower_layers",
        "tower_sites",
        "items",
        "placeholder_ids",
        "num_layers",
        "architecture",
        "attention_implementation",
    }
    public = {name for part in (ImageVideoAdapter, DecoderStack) for name in dir(part) if not name.startswith("_")}
    assert listed ^ public == used_by_the_engine


class EverythingIsExact(DecoderStack):
    """Layers that keep a key and a value per token, and nothing else, whatever the config calls them."""

    def kind(self, layer: int) -> str:
        return "full_attention"


class OwnStackAdapter(GenericAdapter):
    """A family whose config calls its layers something else."""

    stack_class = EverythingIsExact


def test_a_family_may_describe_its_layers_itself() -> None:
    model: Any = CASES["llava"].build()
    model.config.get_text_config(decoder=True).layer_types = ["a_type_of_tomorrow"] * 4
    with pytest.raises(UnsupportedModelError, match="a_type_of_tomorrow"):
        GenericAdapter(model).stack.check_exact(1)
    OwnStackAdapter(model).stack.check_exact(1)
