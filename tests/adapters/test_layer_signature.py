"""A family whose decoder layers call all of their arguments by names of their own."""

from __future__ import annotations

import types
from collections.abc import Iterator
from dataclasses import replace
from importlib import metadata
from importlib.metadata import EntryPoint, EntryPoints
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, LlavaConfig, LlavaForConditionalGeneration, PreTrainedModel
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaModel

import tokenprune as tp
from tests.support.matrix import STEPS, difference, generate, stages_of
from tests.support.oracle import oracle_generate_logits, tolerance
from tests.support.tiny import CASES
from tests.support.tiny.core import CACHE
from tokenprune.adapters.layer_signature import LayerSignature
from tokenprune.adapters.llava import LlavaAdapter
from tokenprune.core import plugins
from tokenprune.errors import UnsupportedModelError

CASE = CASES["llava"]
SCORERS = ("fastv", "matrix_entropy", "random")


NAMES = LayerSignature(hidden_states="x", attention_mask="mask", position_embeddings="rope", position_ids="pos")


class OtherNamesConfig(LlavaConfig):
    model_type = "other_names"


class OtherNamesLayer(LlamaDecoderLayer):
    """A Llama layer with other argument names, and no others."""

    def forward(self, x: Tensor, mask: Any = None, rope: Any = None, pos: Any = None, kv: Any = None) -> Tensor:
        states: Tensor = super().forward(
            x, attention_mask=mask, position_embeddings=rope, position_ids=pos, **{CACHE: kv}
        )
        return states


class OtherNamesDecoder(LlamaModel):
    """Calls its layers by these names, or all by position."""

    by_position = False

    def forward(  # type: ignore[override]
        self,
        inputs_embeds: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        kv = kwargs.get(CACHE)
        if use_cache is not False and kv is None:
            kv = DynamicCache(config=self.config)
        past = 0 if kv is None else kv.get_seq_length()
        pos = torch.arange(inputs_embeds.shape[1])[None] + past if position_ids is None else position_ids
        mask = create_causal_mask(
            config=self.config,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=pos,
            **{CACHE: kv},
        )
        x, rope = inputs_embeds, self.rotary_emb(inputs_embeds, position_ids=pos)
        for layer in self.layers:
            x = layer(x, mask, rope, pos, kv) if self.by_position else layer(x, mask=mask, rope=rope, pos=pos, kv=kv)
        return BaseModelOutputWithPast(last_hidden_state=self.norm(x), **{CACHE: kv})


class OtherNamesAdapter(LlavaAdapter):
    """LLaVA with the names that its layers use."""

    layer_signature = NAMES


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The adapter is registered, as the entry point of a distribution would do."""
    point = EntryPoint("other_names", f"{__name__}:OtherNamesAdapter", "tokenprune.adapters")
    vars(point)["dist"] = types.SimpleNamespace(name="other-names")
    real = metadata.entry_points

    def entry_points(**how: Any) -> EntryPoints:
        return EntryPoints([*real(**how), *EntryPoints([point]).select(**how)])

    monkeypatch.setattr(metadata, "entry_points", entry_points)
    plugins.refresh()
    yield
    monkeypatch.undo()
    plugins.refresh()


def renamed(plain: PreTrainedModel, by_position: bool) -> PreTrainedModel:
    """A model with the same weights, whose layers use other names."""
    config = OtherNamesConfig(**{k: v for k, v in plain.config.to_dict().items() if k != "model_type"})
    model = LlavaForConditionalGeneration(config).eval()
    decoder = OtherNamesDecoder(config.text_config)
    decoder.layers = torch.nn.ModuleList(OtherNamesLayer(config.text_config, n) for n in range(len(decoder.layers)))
    decoder.by_position = by_position
    model.model.language_model = decoder.eval()
    model.load_state_dict(plain.state_dict())
    model.generation_config = plain.generation_config
    model.set_attn_implementation(plain.config._attn_implementation)
    return model


def method(scorer: str, ratio: float = 0.33) -> tp.Method:
    """Two stages."""
    return tp.Method.from_dict(
        {
            "layers": {"name": "fixed", "layers": [1, 3]},
            "pruner": {"name": "topk", "scorer": scorer},
            "budget": {"name": "keep_ratio", "ratio": ratio},
        }
    )


@pytest.mark.parametrize("by_position", [False, True], ids=["by name", "by position"])
@pytest.mark.parametrize("scorer", SCORERS)
@pytest.mark.parametrize("variant", ["image", "ragged"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.usefixtures("registered")
@torch.no_grad()
def test_other_names(attention: str, variant: Any, scorer: str, by_position: bool) -> None:
    """It is pruned as the family with the usual names and the same weights is, and as the oracle says."""
    plain = CASE.build(attention)
    model = renamed(plain, by_position)
    padding: Any = "none" if by_position else "left"
    inputs = CASE.batch(model, 3, padding, variant=variant).inputs
    assert torch.equal(generate(model, inputs).sequences, generate(plain, inputs).sequences)
    runs = []
    for one in (plain, model):
        with tp.apply(one, method(scorer)) as run:
            runs.append((generate(one, inputs), run))
    (expected, plain_run), (output, run) = runs
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(stages_of(plain_run), stages_of(run), strict=True))
    assert torch.equal(output.sequences, expected.sequences)
    logits = torch.stack(output.logits, 1)
    exact = oracle_generate_logits(plain, inputs, output.sequences[:, -STEPS:], stages_of(run), CASE.visual_ids)
    assert difference(logits, exact) <= tolerance(exact)


@pytest.mark.usefixtures("registered")
@torch.no_grad()
def test_other_names_in_beam_search_and_without_a_cache() -> None:
    plain = CASE.build()
    model = renamed(plain, by_position=True)
    inputs = CASE.batch(model, 3, "left", variant="ragged").inputs
    for how in ({"num_beams": 3}, {"use_cache": False}):
        outputs = []
        for one in (plain, model):
            with tp.apply(one, method("fastv")):
                outputs.append(generate(one, inputs, **how).sequences)
        assert torch.equal(*outputs)


@torch.no_grad()
def test_without_the_adapter_the_error_names_what_to_override() -> None:
    model = renamed(CASE.build(), by_position=False)
    with pytest.raises(UnsupportedModelError, match=r"start with hidden_states .*'x', 'mask', 'rope'.*layer_signature"):
        tp.apply(model, method("random")).__enter__()


@pytest.mark.parametrize(
    ("forgotten", "match"),
    [
        ("attention_mask", r"has no argument attention_mask .*'mask'.*layer_signature"),
        ("position_embeddings", r"get 'rope' .*follow the \d+ tokens.*layer_signature.*sequence_kwargs"),
        ("position_ids", r"get 'pos' .*follow the \d+ tokens.*layer_signature.*sequence_kwargs"),
    ],
)
@pytest.mark.usefixtures("registered")
@torch.no_grad()
def test_a_forgotten_name_is_an_error(forgotten: str, match: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in a layer that accepts arguments which it does not know: it would ignore the mask of a ragged batch."""

    def forward(
        layer: Any, x: Any, mask: Any = None, rope: Any = None, pos: Any = None, kv: Any = None, **_: Any
    ) -> Any:
        return LlamaDecoderLayer.forward(layer, x, mask, pos, kv, position_embeddings=rope)

    monkeypatch.setattr(OtherNamesLayer, "forward", forward)
    signature = replace(NAMES, **{forgotten: getattr(LayerSignature(), forgotten)})
    monkeypatch.setattr(OtherNamesAdapter, "layer_signature", signature)
    model = renamed(CASE.build(), by_position=False)
    inputs = CASE.batch(model, 3, "none", variant="ragged").inputs
    with pytest.raises(UnsupportedModelError, match=match), tp.apply(model, method("random")):
        model(**inputs)
