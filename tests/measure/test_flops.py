"""Closed-form FLOPs and cache bytes, against numbers counted elsewhere and against counted operations."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlavaConfig, LlavaForConditionalGeneration, PreTrainedModel

import tokenprune as tp
from tests.experiment.test_cli import call
from tests.support.tiny import CASES, EVERY, UPSTREAM_FAULTS
from tests.support.tiny.core import CACHE
from tests.support.tiny.gemma import WINDOW, gemma4_model
from tests.support.tiny.qwen import ernie_model
from tokenprune.errors import ConfigError, UnsupportedModelError
from tokenprune.flops.decoder import (
    Shape,
    head_flops,
    kv_cache_bytes,
    layer_flops,
    model_flops,
    prefill_flops,
    step_flops,
)
from tokenprune.flops.vision import vision_flops
from tokenprune.measure.counted import (
    count_flops,
    decoder_counted,
    decoder_traced,
    pruned_decoder_counted,
    vision_counted,
)
from tokenprune.measure.estimate import estimate
from tokenprune.models.presets import PRESETS, Request, preset
from tokenprune.selectors.fixed import Fixed

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


def decoder_flops(model: PreTrainedModel, visual: int = 0, text: int = 23) -> Any:
    """FLOPs of the decoder's layers by torch's counter, which sees experts only where they run one by one."""
    decoder: Any = model.get_decoder()
    config = decoder.config
    model.set_attn_implementation("eager")
    model.set_experts_implementation("eager")
    more: dict[str, Any] = {"inputs_embeds": torch.zeros(1, visual + text, config.hidden_size)}
    if config.model_type == "gemma4_text":  # its per-layer inputs are looked up by id, then projected
        more = {"input_ids": torch.full((1, visual + text), 5)}
    if visual:
        more["moe_mm_token_type_ids"] = torch.tensor([[1] * visual + [0] * text])
    counted = count_flops(lambda: decoder(**more, use_cache=False))
    projected = config.num_hidden_layers * (getattr(config, "hidden_size_per_layer_input", None) or 0)
    return counted - 2 * (visual + text) * config.hidden_size * projected


GEMMA4: dict[str, dict[str, Any]] = {
    "shared keys": {},
    "a wider feed-forward": {"use_double_wide_mlp": True},
    "no shared keys": {"num_kv_shared_layers": 0},
    "keys are values": {
        "num_kv_shared_layers": 0,
        "hidden_size_per_layer_input": 0,
        "attention_k_eq_v": True,
        "global_head_dim": 32,
        "num_global_key_value_heads": 1,
    },
    "experts": {"enable_moe_block": True, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 24},
}


@pytest.mark.parametrize("variant", GEMMA4)
def test_layers_of_different_sizes_against_torchs_counter(variant: str) -> None:
    """Gemma 4: sliding and global layers have heads of different size, some layers read another layer's keys."""
    model = gemma4_model(**GEMMA4[variant]).eval()
    text = model.config.get_text_config()
    assert decoder_flops(model) == prefill_flops(text, [23] * text.num_hidden_layers)


def test_layers_of_different_sizes_hold_different_caches() -> None:
    model = gemma4_model().eval()
    text = model.config.get_text_config()
    tokens = WINDOW - 1  # a sliding layer's cache holds no more than that
    cache = model(input_ids=torch.full((1, tokens), 5))[CACHE]
    stored = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers if layer.keys is not None)
    assert kv_cache_bytes(text, [tokens] * text.num_hidden_layers, 4) == stored


def test_the_older_way_to_state_layers_of_different_sizes() -> None:
    """Before per-layer configs, Gemma 4 stated the heads of its global layers in fields of their own."""
    new = gemma4_model(**GEMMA4["keys are values"]).config.get_text_config()
    fields = new.to_dict() | {"global_head_dim": 32, "num_global_key_value_heads": 1}
    old = SimpleNamespace(**fields)
    assert [Shape.of(old, layer) for layer in range(6)] == [Shape.of(new, layer) for layer in range(6)]


def test_experts_per_modality_against_torchs_counter() -> None:
    """ERNIE 4.5 VL: text and visual tokens have experts of different width, the first layer has none."""
    model = ernie_model([48, 32]).eval()
    text = model.config.get_text_config()
    layers = text.num_hidden_layers
    assert decoder_flops(model) == prefill_flops(text, [23] * layers, [0] * layers)
    assert decoder_flops(model, visual=9) == prefill_flops(text, [32] * layers, [9] * layers)
    with pytest.raises(UnsupportedModelError, match=r"'ernie4_5_vl_moe_text' are unknown: .*; say how many"):
        prefill_flops(text, [32] * layers)


@pytest.mark.parametrize("name", ["qwen3_vl_moe", "aria", "llava_mixtral", "llava_gpt_oss", "ernie4_5_vl"])
def test_experts_against_torchs_counter(name: str) -> None:
    """Active and shared experts and the router."""
    model = CASES[name].build("eager")
    text = model.config.get_text_config()
    assert decoder_flops(model) == prefill_flops(text, [23] * text.num_hidden_layers)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("qwen3_5", "layers of type 'linear_attention'"),
        ("lfm2_vl", "layers of type 'conv'"),
        ("minimax_m3_vl", "layers of type 'minimax_m3_sparse'"),
        ("llava_deepseek_v3", "compressed keys and values"),
        ("llama4", "every expert"),
    ],
)
def test_families_without_a_closed_form_of_the_decoder_are_errors(name: str, why: str) -> None:
    text = EVERY[name].build().config.get_text_config()
    with pytest.raises(UnsupportedModelError, match=f"FLOPs of '{text.model_type}' are unknown: .*{why}"):
        prefill_flops(text, [23] * text.num_hidden_layers)


@pytest.mark.parametrize("name", ["gemma4_unshared", "gemma4_large", "ernie4_5_vl"])
def test_the_report_of_layers_of_different_sizes(name: str) -> None:
    model = CASES[name].build()
    inputs = CASES[name].batch(model, 1, "none").inputs
    with tp.apply(model, tp.load_method("random", keep_ratio=0.5)) as run:
        model(**inputs)
    assert "decoder prefill FLOPs (sample 0): " in str(run.report)


def test_the_report_counts_experts_per_modality() -> None:
    """Pruning removes visual tokens, so it saves FLOPs of the visual experts alone."""
    model = ernie_model([48, 32]).eval()
    text, layers = model.config.get_text_config(), model.config.get_text_config().num_hidden_layers
    inputs = CASES["ernie4_5_vl"].batch(model, 1, "none").inputs
    with tp.apply(model, tp.load_method("random", keep_ratio=0.5)) as run:
        model(**inputs)
    report = run.report
    length, visual = inputs["input_ids"].shape[1], report.before[0]
    assert report.flops(pruned=False) == prefill_flops(text, [length] * layers, [visual] * layers)
    assert report.flops() < report.flops(pruned=False)
    assert "decoder prefill FLOPs (sample 0): " in str(report)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("llama4", "transformers runs every expert on every token"),
        ("llava_deepseek_v3", "it attends to compressed keys and values"),
    ],
)
def test_the_report_of_a_family_without_a_closed_form(name: str, why: str) -> None:
    """One line says that the FLOPs are unknown and why; everything else is printed."""
    if name in UPSTREAM_FAULTS:
        pytest.skip(f"this transformers cannot run it unpruned: {UPSTREAM_FAULTS[name]}")
    model = CASES[name].build()
    inputs = CASES[name].batch(model, 1, "none").inputs
    with tp.apply(model, tp.load_method("random", keep_ratio=0.5)) as run:
        model(**inputs)
    lines = str(run.report).splitlines()
    unknown = [line for line in lines if "unknown" in line]
    assert len(unknown) == 1
    assert unknown[0].startswith(f"  FLOPs of '{model.config.get_text_config().model_type}' are unknown: {why}")
    assert any(line.startswith("  KV cache: ") for line in lines)
    assert any(line.startswith("  scoring and selecting: ") for line in lines)


def test_cache_bytes_are_what_the_cache_holds() -> None:
    model = CASES["llava"].build()
    inputs = CASES["llava"].batch(model, 1, "none").inputs
    cache = model(**inputs)[CACHE]
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    length = inputs["input_ids"].shape[1]
    assert kv_cache_bytes(model.config.text_config, [length] * 4, 4) == held


@pytest.mark.parametrize("name", sorted(PRESETS))
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_closed_form_and_both_counters_agree(name: str, attention: str) -> None:
    """The published architectures on the device meta. Allowed: 1 %; in fact these agree to the last digit.

    Of a pruned decoder the count is a sum over unpruned ones, so each attention needs one of the two counts.
    """
    chosen = preset(name)
    model = chosen.build("meta", attention=attention)
    layers, tokens = model.config.text_config.num_hidden_layers, chosen.visual_tokens + 60
    closed = model_flops(model.config, chosen.visual_tokens, [tokens] * layers)
    assert decoder_traced(model, tokens) == pytest.approx(closed.decoder, rel=1e-2)
    if attention == "eager":
        cut = [tokens] * 2 + [200] * (layers - 2)
        text = model.config.get_text_config()
        assert pruned_decoder_counted(model, cut) == pytest.approx(prefill_flops(text, cut), rel=1e-2)
    else:
        assert decoder_counted(model, tokens) == pytest.approx(closed.decoder, rel=1e-2)
        counted = vision_counted(model, chosen.inputs([Request(1)]))
        assert counted == pytest.approx(closed.vision + closed.projector, rel=1e-2)


def test_the_figures_that_were_counted_elsewhere() -> None:
    """LLaVA-1.5-7B at 576 + 60 tokens and Qwen2.5-VL-7B at 324 + 60, counted over the whole model at once."""
    parts = model_flops(preset("llava-1.5-7b").config(), 576, [636] * 32)
    assert parts.vision == pytest.approx(0.38192e12, rel=1e-4)
    assert parts.projector == pytest.approx(0.02416e12, rel=1e-3)
    assert parts.total == pytest.approx(8.85589e12, rel=1e-4)
    assert model_flops(preset("qwen2.5-vl-7b").config(), 324, [384] * 28).total == pytest.approx(6.78235e12, rel=1e-3)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "gemma3"])
def test_pruning_saves_what_the_closed_form_says(family: str) -> None:
    """Counted while the pruned model really runs; tower, projector and head are the same in both and drop out."""
    model = CASES[family].build("eager")
    inputs = CASES[family].batch(model, 1, "none").inputs
    method = tp.Method(
        layers={"name": "fixed", "layers": [2]},
        pruner={"name": "topk", "scorer": {"name": "random"}},
        budget={"name": "keep_ratio", "ratio": 0.4},
    )
    unpruned = count_flops(lambda: model(**inputs, logits_to_keep=1))
    with tp.apply(model, method) as run:
        pruned = count_flops(lambda: model(**inputs, logits_to_keep=1))
    report = run.report
    assert report.after[0] < report.before[0]
    assert unpruned - pruned == pytest.approx(report.flops(pruned=False) - report.flops(), rel=0.01)


def test_a_decode_step_against_torchs_counter() -> None:
    model = CASES["llava"].build("eager")
    inputs = CASES["llava"].batch(model, 1, "none").inputs
    config = model.config.get_text_config()
    cache = model(**inputs)[CACHE]
    length = inputs["input_ids"].shape[1]
    step = {"input_ids": inputs["input_ids"][:, :1], CACHE: cache}
    counted = count_flops(lambda: model(**step))
    expected = step_flops(config, [length] * config.num_hidden_layers) + head_flops(config)
    assert counted == pytest.approx(expected, rel=0.01)


def test_towers_without_a_closed_form_and_impossible_counts_are_errors() -> None:
    with pytest.raises(UnsupportedModelError, match="no closed form for the vision tower of 'gemma3'"):
        vision_flops(CASES["gemma3"].build().config, 64)
    with pytest.raises(ConfigError, match="577 visual tokens: every image makes 576"):
        vision_flops(preset("llava-1.5-7b").config(), 577)
    assert vision_flops(preset("llava-1.5-7b").config(), 0) == (0, 0)


def test_two_images_take_twice_one() -> None:
    config = preset("llava-1.5-7b").config()
    assert vision_flops(config, 1152) == tuple(2 * flops for flops in vision_flops(config, 576))


def dinov2_llava(swiglu: bool = False) -> LlavaConfig:
    """A LLaVA whose tower takes pictures of any size: trained at 70 pixels, used at 56."""
    tower = {"model_type": "dinov2", "hidden_size": 28, "num_hidden_layers": 2, "num_attention_heads": 2}
    tower |= {"image_size": 70, "patch_size": 14, "mlp_ratio": 4, "use_swiglu_ffn": swiglu}
    text = {"model_type": "llama", "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 4}
    text |= {"num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 200}
    return LlavaConfig(
        vision_config=tower,
        text_config=text,
        image_token_index=150,
        image_seq_length=16,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
    )


@pytest.mark.parametrize("swiglu", [False, True])
def test_a_tower_for_any_size_is_counted_at_the_size_that_the_config_states(swiglu: bool) -> None:
    config = dinov2_llava(swiglu)
    model = LlavaForConditionalGeneration._from_config(config, attn_implementation="eager").eval()
    pixels = torch.rand(2, 3, 56, 56)
    counted = count_flops(lambda: model.get_image_features(pixel_values=pixels))
    assert sum(vision_flops(config, 32)) == pytest.approx(counted, rel=0.01)
    with pytest.raises(ConfigError, match=r"17 visual tokens: every image makes 16; .*scope: decoder"):
        vision_flops(config, 17)


def test_the_default_scope_of_a_flops_budget_runs_on_such_a_model() -> None:
    model = LlavaForConditionalGeneration(dinov2_llava()).eval()
    inputs = {"input_ids": torch.tensor([[1, *[150] * 16, *range(2, 30)]]), "pixel_values": torch.rand(1, 3, 56, 56)}
    method = tp.load_method("random", flops_reduction=5)
    with torch.no_grad(), tp.apply(model, method) as run:
        model(**inputs)
    assert 0 < run.report.after[0] < 16


def test_a_tower_without_a_closed_form_names_the_way_out() -> None:
    config = preset("llava-1.5-7b").config()
    config.vision_config.model_type = "pixtral"
    with pytest.raises(UnsupportedModelError, match=r"no closed form for the vision tower 'pixtral' .*scope: decoder"):
        vision_flops(config, 576)


@pytest.mark.parametrize("first", [0, 2])
@pytest.mark.parametrize(("scope", "percent"), [("model", 30.0), ("decoder", 40.0), ("model", 45.0)])
def test_a_flops_budget_keeps_the_most_that_meets_it(scope: str, percent: float, first: int) -> None:
    """Solved by trying every count with the formula written out; one token more would miss the target."""
    config = preset("llava-0.5b").config()
    d, m, q, k, layers, text, visual = 896, 4864, 896, 128, 24, 60, 576
    fixed = sum(vision_flops(config, visual)) if scope == "model" else 0

    def cost(kept: int) -> float:
        total = float(fixed)
        for layer in range(layers):
            n = text + (visual if layer < first else kept)
            total += 4 * n * d * q + 4 * n * d * k + 4 * n * n * q + 6 * n * d * m
        return total

    best = max(kept for kept in range(1, visual) if cost(kept) <= (1 - percent / 100) * cost(visual))
    method = tp.load_method("random", budget="flops_reduction", percent=percent, scope=scope)
    method = method.model_copy(update={"layers": Fixed(layers=(first,))})
    found = estimate("llava-0.5b", method, text)
    assert found["kept"] == [best]
    row = found if scope == "model" else found["parts"]["decoder"]
    assert row["reduction_percent"] >= percent
    assert 100 * (1 - cost(best + 1) / cost(visual)) < percent


def test_a_flops_budget_is_met_by_the_model_that_runs() -> None:
    """By each sample as if it came alone: without its padding."""
    model = CASES["llava"].build()
    inputs = CASES["llava"].batch(model, 3, "ragged").inputs
    method = tp.load_method("random", budget="flops_reduction", percent=25, scope="decoder")
    with tp.apply(model, method) as run:
        model(**inputs)
    padding = (inputs["attention_mask"] == 0).sum(1).tolist()
    assert any(padding)
    own = [count - absent for count, absent in zip(run.report.text_tokens, padding, strict=True)]
    report = replace(run.report, text_tokens=own)
    assert all(1 - report.flops(i) / report.flops(i, pruned=False) >= 0.25 for i in range(len(report.before)))
    hopeless = tp.load_method("random", flops_reduction=99)
    with pytest.raises(tp.TokenPruneError, match="cannot become 99 % cheaper"), tp.apply(model, hopeless):
        model(**inputs)


def test_selection_is_counted_per_scorer() -> None:
    """576 tokens of 32 heads of 128: Gram 2 * 32^2 * 128, eigenvalues 4/3 * 32^3."""
    found = {name: estimate("llava-1.5-7b", tp.load_method(name), 60) for name in ("entropyprune", "fastv", "random")}
    selection = {name: row["parts"]["selection"]["flops_pruned"] for name, row in found.items()}
    assert selection["entropyprune"] == 576 * (2 * 32**2 * 128 + 4 * 32**3 // 3)
    assert selection["fastv"] == 2 * 636 * 4096
    assert selection["random"] == 0


@pytest.mark.parametrize(("text", "reduction"), [(40, 69.68), (57, 67.94), (100, 63.92)])
def test_the_papers_headline(text: int, reduction: float) -> None:
    """-68.2 % at layer average 128 of 576; the paper does not say how long its prompt is."""
    found = estimate("llava-1.5-7b", tp.load_method("entropyprune", average_tokens=128), text)
    assert found["kept"] == [98]
    assert found["reduction_percent"] == pytest.approx(reduction, abs=0.01)


BASE = [
    "flops",
    "--model",
    "llava-1.5-7b",
    "--method",
    "entropyprune",
    "--average-tokens",
    "128",
    "--text-tokens",
    "57",
]


@pytest.mark.slow
def test_the_command_prints_a_table_and_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, *BASE) == 0
    shown = capsys.readouterr().out
    assert "entropyprune (128 tokens, layer average): visual tokens 576 -> 98 before layer 2" in shown
    assert "67.94 %" in shown
    assert call(monkeypatch, *BASE, "--json", "--counted") == 0
    found = json.loads(capsys.readouterr().out)
    assert {"flops_unpruned", "flops_pruned", "reduction_percent"} <= set(found)
    assert found["total"]["flops_pruned"] == found["flops_pruned"]
    parts = [row for name, row in found["parts"].items() if name != "head"]
    assert sum(row["flops_pruned"] for row in parts) == found["flops_pruned"]
    assert found["counted"]["decoder"]["flops_pruned"] == found["parts"]["decoder"]["flops_pruned"]
    assert abs(found["reduction_percent"] - 68.2) <= 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "llava"], "unknown model 'llava'; did you mean"),
        (["--model", ""], "unknown model ''; "),
        (["--method", "entrpyprune"], "unknown method 'entrpyprune'; did you mean 'entropyprune'"),
        (["--average-tokens", "0"], "budget.tokens"),
        (["--average-tokens", "600"], "a budget of 600 tokens, layer average, for 576 visual tokens; ask for 1 to 576"),
        (["--average-tokens", "10"], "ask for at least 36.9"),
        (["--keep-tokens", "600"], "a budget of 600 tokens kept, for 576"),
        (["--visual-tokens", "0"], "0 visual tokens; give at least 1"),
        (["--visual-tokens", "577"], "every image makes 576"),
        (["--text-tokens", "-1"], "-1 text tokens; give 0 or more"),
        (["--flops-reduction", "99"], "cannot become 99 % cheaper"),
        (["--average-tokens", "99", "--keep-tokens", "4"], "several budgets"),
    ],
)
def test_mistakes_are_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    assert call(monkeypatch, "flops", *arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert words in error
    assert len(error.strip().splitlines()) == 1


def test_a_checkpoints_folder_will_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    preset("llava-1.5-7b").config().save_pretrained(tmp_path)
    folder = ["flops", "--model", str(tmp_path), "--average-tokens", "128"]
    assert call(monkeypatch, *folder) == 2
    assert "give --visual-tokens" in capsys.readouterr().err
    assert call(monkeypatch, *folder, "--visual-tokens", "576", "--json") == 0
    assert json.loads(capsys.readouterr().out)["kept"] == [98]
    (tmp_path / "config.json").write_text("{}")
    assert call(monkeypatch, *folder, "--visual-tokens", "576") == 2
    assert "cannot be loaded" in capsys.readouterr().err


def test_the_whole_model_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """LLaVA-1.5-7B in one forward on meta: nothing but the parts (and the head at every position) costs anything."""
    monkeypatch.setenv("TRANSFORMERS_DISABLE_TORCH_CHECK", "1")  # it would compare counts that meta tensors do not have
    chosen = preset("llava-1.5-7b")
    model = chosen.build("meta")
    inputs = {name: value.to("meta") for name, value in chosen.inputs([Request(60)]).items()}
    del inputs["attention_mask"]  # whether it hides anything cannot be looked up on meta
    counted = count_flops(lambda: model(**inputs, use_cache=True))
    closed = model_flops(model.config, 576, [636] * 32)
    assert counted == pytest.approx(closed.total + 636 * closed.head, rel=1e-2)
    assert counted - 636 * closed.head == pytest.approx(8.85589e12, rel=1e-3)
