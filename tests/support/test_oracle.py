"""The oracle judged: it must hide what it says, nothing else, and agree with physical removal."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.support.matrix import model_of
from tests.support.oracle import (
    CannotJudgeError,
    Stage,
    decoder_layers,
    kept_rows,
    oracle_generate_logits,
    oracle_logits,
    positions_of_generate,
    tolerance,
    visual_positions,
)
from tests.support.tiny import CASES
from tests.support.tiny.core import Padding, TinyCase

torch.set_num_threads(1)
STEPS = 4
PADDINGS: tuple[Padding, ...] = ("none", "left")


def combinations(*, hybrid: bool = True, generates: bool = False) -> list[tuple[str, str, Padding]]:
    """(family, attention, padding): all of them for the families that the project names, one for the others."""
    return [
        (name, attention, padding)
        for name, case in CASES.items()
        if (hybrid or not case.hybrid) and (case.generates or not generates)
        for attention in (case.attentions if case.core else case.attentions[:1])
        for padding in (PADDINGS if case.core else ("left",))
    ]


def keep_all(case: TinyCase, inputs: dict[str, Tensor]) -> Stage:
    """A stage before layer 0 that drops nothing."""
    rows = [row.nonzero()[:, 0] for row in visual_positions(inputs, case.visual_ids)]
    return 0, torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-1)


def last_rows(logits: Tensor, inputs: dict[str, Tensor]) -> Tensor:
    """The logits at each sample's last real token."""
    return logits[torch.arange(len(logits)), inputs["attention_mask"].cumsum(1).argmax(1)]


@pytest.mark.parametrize(("name", "attention", "padding"), combinations(hybrid=False))
@torch.no_grad()
def test_hidden_tokens_matter(name: str, attention: str, padding: Padding) -> None:
    """Hiding nothing changes nothing; one hidden visual token changes what comes after it and nothing before."""
    case = CASES[name]
    model = model_of(name, attention)
    inputs = case.batch(model, 2, padding).inputs
    plain = model(**inputs).logits
    layer, kept = keep_all(case, inputs)
    assert torch.equal(oracle_logits(model, inputs, [(layer, kept)], case.visual_ids), plain)
    before = (torch.arange(plain.shape[1]) < kept[:, :1]) & inputs["attention_mask"].bool()
    for start in (0, len(decoder_layers(model)) - 1):
        hidden = oracle_logits(model, inputs, [(start, kept[:, :-1])], case.visual_ids)
        if start == 0:
            assert last_rows(hidden - plain, inputs).abs().amax(1).min() > 1e-2
        assert torch.allclose(hidden[before], plain[before], rtol=0, atol=tolerance(plain))


@pytest.mark.parametrize(("name", "attention", "padding"), combinations(generates=True))
@torch.no_grad()
def test_positions_matter(name: str, attention: str, padding: Padding) -> None:
    """Text after the image at positions one too small (what a pruner that renumbers would give) changes the logits."""
    case = CASES[name]
    model = model_of(name, attention)
    inputs = case.batch(model, 2, padding).inputs
    right = positions_of_generate(model, inputs)
    _, kept = keep_all(case, inputs)
    wrong = right - (torch.arange(right.shape[-1]) > kept[:, -1:]).long()
    one, other = (model(**inputs, position_ids=p).logits for p in (right, wrong))
    assert last_rows(one - other, inputs).abs().amax(1).min() > 1e-2


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "internvl", "llava_olmo2", "mistral3"])
@torch.no_grad()
def test_layer_zero_is_physical_removal(name: str, attention: str) -> None:
    """Hiding from layer 0 on is the same as never having had the tokens, at the original positions of the others."""
    case = CASES[name]
    model = model_of(name, attention)
    inputs = case.batch(model, 2).inputs
    _, kept = keep_all(case, inputs)
    stage = (0, kept[:, ::3])
    whole = oracle_logits(model, inputs, [stage], case.visual_ids)
    embeds: list[Tensor] = []
    hook = decoder_layers(model)[0].register_forward_pre_hook(
        lambda _, args, kwargs: embeds.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
    )
    model(**inputs)
    hook.remove()
    rows = torch.stack(kept_rows(inputs, [stage], case.visual_ids))
    positions = positions_of_generate(model, inputs)
    if positions.ndim == 2:
        positions = positions.expand(2, -1).gather(1, rows)
    else:
        positions = positions.gather(2, rows.expand(len(positions), -1, -1))
    short = embeds[0].gather(1, rows[..., None].expand(-1, -1, embeds[0].shape[-1]))
    removed = model(
        inputs_embeds=short, position_ids=positions, attention_mask=torch.ones_like(rows), use_cache=False
    ).logits
    expected = whole.gather(1, rows[..., None].expand(-1, -1, whole.shape[-1]))
    assert torch.allclose(removed, expected, rtol=0, atol=tolerance(expected))


@torch.no_grad()
def test_stages_add_up() -> None:
    """What an early stage drops stays dropped at a later one, and both count."""
    case = CASES["llava"]
    model = case.build()
    inputs = case.batch(model, 2).inputs
    _, kept = keep_all(case, inputs)
    early, late = (1, kept[:, :8]), (2, kept[:, 4:12])
    both = oracle_logits(model, inputs, [early, late], case.visual_ids)
    same = oracle_logits(model, inputs, [early, (2, kept[:, 4:8])], case.visual_ids)
    assert torch.equal(both, same)
    for stages in ([early], [late]):
        assert not torch.allclose(both, oracle_logits(model, inputs, stages, case.visual_ids), atol=1e-3)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@torch.no_grad()
def test_hooks_leave_no_trace(attention: str) -> None:
    """After the oracle the model is untouched."""
    case = CASES["qwen3_vl"]
    model = model_of("qwen3_vl", attention)
    inputs = case.batch(model, 2).inputs
    plain = model(**inputs).logits
    _, kept = keep_all(case, inputs)
    oracle_logits(model, inputs, [(0, kept[:, :3])], case.visual_ids)
    assert torch.equal(model(**inputs).logits, plain)
    assert not any(m._forward_pre_hooks for m in model.modules())


@torch.no_grad()
def test_refuses_hybrid_stacks() -> None:
    """A linear-attention layer has no columns to hide: the oracle says so."""
    case = CASES["lfm2_vl"]
    model = case.build()
    inputs = case.batch(model, 2).inputs
    _, kept = keep_all(case, inputs)
    with pytest.raises(CannotJudgeError):
        oracle_logits(model, inputs, [(0, kept[:, :3])], case.visual_ids)


@pytest.mark.parametrize(("name", "attention", "padding"), combinations(generates=True))
@torch.no_grad()
def test_teacher_forcing_is_generate(name: str, attention: str, padding: Padding) -> None:
    """With nothing hidden the oracle's logits are those of `generate`, step by step."""
    if name == "minimax_m3_vl" and padding == "left":
        pytest.skip("block-sparse attention cuts other blocks behind left padding: its decode differs from its prefill")
    case = CASES[name]
    model = model_of(name, attention)
    # ragged samples have one image, or several
    for variant in case.variants if case.core or "ragged" not in case.variants else case.variants[2:]:
        inputs = case.batch(model, 3, padding, variant=variant).inputs
        out = model.generate(**inputs, max_new_tokens=STEPS, output_logits=True, return_dict_in_generate=True)
        generated = out.sequences[:, -STEPS:]
        ours = oracle_generate_logits(model, inputs, generated, [], case.visual_ids, case.appended)
        torch.testing.assert_close(ours, torch.stack(out.logits, 1), rtol=0, atol=case.slack * tolerance(ours))
