"""How close a pruned model is to the unpruned one, and the layers that are not run again for it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import tokenprune as tp
from tests.support.simple import pair
from tests.support.tiny import CASES, CORE
from tests.support.tiny.core import CACHE
from tokenprune.adapters import adapter_for
from tokenprune.engine.trials.fidelity import Fidelity, UnprunedBatch, last_token_logits
from tokenprune.errors import ConfigError, TokenPruneError

SCORERS: tuple[dict[str, Any], ...] = (
    {"name": "matrix_entropy"},
    {"name": "norm", "source": "hidden"},
    {"name": "fastv"},
    {"name": "random"},
)


def method(layers: list[int], scorer: dict[str, Any], ratio: float = 0.4) -> tp.Method:
    return tp.Method(
        layers={"name": "fixed", "layers": layers},
        pruner={"name": "topk", "scorer": scorer},
        budget={"name": "keep_schedule", "ratios": [ratio / (n + 1) for n in range(len(layers))]},
    )


def plain_logits(model: Any, inputs: Any) -> torch.Tensor:
    """Of the last token of every sample, by a forward that shows all."""
    logits = model(**{**inputs, "use_cache": False}).logits
    mask = inputs.get("attention_mask")
    last = [-1] * len(logits) if mask is None else [int(row.nonzero().max()) - len(row) for row in mask]
    return torch.stack([rows[index] for rows, index in zip(logits, last, strict=True)])


@pytest.mark.parametrize("padding", ["none", "left", "right"])
@torch.no_grad()
def test_logits_of_the_last_token(padding: Any) -> None:
    model, inputs = pair(padding=padding)
    torch.testing.assert_close(last_token_logits(model, inputs), plain_logits(model, inputs), rtol=0, atol=1e-6)


@pytest.mark.parametrize("family", CASES)
@torch.no_grad()
def test_skipped_layers_change_nothing(family: str) -> None:
    """For every layer, with states of layer K-1, of layer K, and none: the same numbers to the last bit."""
    case = CASES[family]
    model = case.build()
    inputs = case.inputs(model)
    adapter = adapter_for(model)
    firsts = range(1, adapter.num_layers)
    plain, reusing = UnprunedBatch(adapter, inputs), UnprunedBatch(adapter, inputs, firsts)
    compared = 0
    for first in firsts:
        for scorer in SCORERS if family in CORE else SCORERS[1:]:  # the first two read the same states
            candidate = method([first], scorer)
            try:
                expected = plain.fidelity(candidate, [first])
            except TokenPruneError:
                with pytest.raises(TokenPruneError):
                    reusing.fidelity(candidate, [first])
                continue
            found = reusing.fidelity(candidate, [first])
            assert str(found.to_lists()) == str(expected.to_lists())  # NaN is not equal to itself
            compared += first > 1
    assert compared or adapter.num_layers < 3 or family not in CORE


@torch.no_grad()
def test_layers_are_skipped() -> None:
    """Of a method that prunes before layer 3 only layers from 2 on run again."""
    model, inputs = pair()
    adapter = adapter_for(model)
    batch = UnprunedBatch(adapter, inputs, [3])
    ran: list[int] = []
    handles = [
        layer.self_attn.register_forward_hook(lambda *_, number=number: ran.append(number))
        for number, layer in enumerate(adapter.layers)
    ]
    batch.fidelity(method([3], {"name": "matrix_entropy"}), [3])
    for handle in handles:
        handle.remove()
    assert ran == list(range(2, adapter.num_layers))


@pytest.mark.parametrize("padding", ["none", "left", "right"])
@torch.no_grad()
def test_the_measures(padding: Any) -> None:
    """Against the probabilities of two plain forwards; two stages."""
    model, inputs = pair(padding=padding)
    candidate = method([1, 3], {"name": "matrix_entropy"})
    found = UnprunedBatch(adapter_for(model), inputs, [1]).fidelity(candidate, [1, 3])
    p = plain_logits(model, inputs).double().softmax(-1)
    with tp.apply(model, candidate) as run:
        q = plain_logits(model, inputs).double().softmax(-1)
    samples = range(len(p))
    assert found.divergence.tolist() == pytest.approx((p * (p.log() - q.log())).sum(-1).tolist(), abs=1e-6)
    assert found.distance.tolist() == pytest.approx((p - q).clamp(min=0).sum(-1).tolist(), abs=1e-6)
    assert found.agreement.tolist() == (p.argmax(-1) == q.argmax(-1)).float().tolist()
    assert found.average.tolist() == pytest.approx([run.report.layer_average(index) for index in samples])
    padded = (inputs["attention_mask"] == 0).sum(1).tolist()
    for index in samples:
        share = run.report.flops(index) / run.report.flops(index, pruned=False)
        if padded[index]:
            assert found.flops[index] < share  # padding costs the same in both
        else:
            assert float(found.flops[index]) == pytest.approx(share)


@torch.no_grad()
def test_several_tokens_are_teacher_forced() -> None:
    """The pruned model continues the unpruned model's answer; the first token's numbers are part of the mean."""
    model, inputs = pair(batch=2, padding="none")
    candidate = method([2], {"name": "matrix_entropy"})
    adapter = adapter_for(model)
    model.generation_config.eos_token_id = None
    try:
        found = UnprunedBatch(adapter, inputs, [2], tokens=3).fidelity(candidate, [2])
        answer = model.generate(**inputs, max_new_tokens=3, do_sample=False)[:, inputs["input_ids"].shape[1] :]
        expected = torch.zeros(2, dtype=torch.double)
        for step in range(3):
            divergence = []
            for pruned in (False, True):
                more = [answer[:, :step]]
                if not pruned:
                    divergence.append(_forced(model, inputs, more[0]))
                else:
                    with tp.apply(model, candidate):
                        divergence.append(_forced(model, inputs, more[0]))
            p, q = divergence
            expected += (p.exp() * (p - q)).sum(-1) / 3
        assert found.divergence.tolist() == pytest.approx(expected.tolist(), rel=1e-3, abs=1e-6)
    finally:
        model.generation_config.eos_token_id = 2


def _forced(model: Any, inputs: Any, answer: torch.Tensor) -> torch.Tensor:
    """Log-probabilities after the answer so far: the prompt is read, then the answer token by token."""
    out = model(**inputs, use_cache=True)
    cache, logits = out[CACHE], out.logits[:, -1]
    mask = inputs["attention_mask"]
    for token in answer.unbind(1):
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
        out = model(input_ids=token[:, None], attention_mask=mask, **{CACHE: cache}, use_cache=True)
        logits = out.logits[:, -1]
    return logits.double().log_softmax(-1)


def test_a_model_in_training_mode_is_refused() -> None:
    """Dropout would change its answers from call to call."""
    model, inputs = pair()
    model.train()
    try:
        with pytest.raises(ConfigError, match=r"training mode.*model\.eval\(\)"):
            UnprunedBatch(adapter_for(model), inputs)
    finally:
        model.eval()


def test_parts_are_put_together() -> None:
    one = Fidelity(*(torch.tensor([float(n)]) for n in range(5)))
    two = Fidelity(*(torch.tensor([float(n), 7.0]) for n in range(5)))
    both = Fidelity.cat([one, two])
    assert len(both) == 3
    assert both.divergence.tolist() == [1, 1, 7]
    assert Fidelity.from_lists(both.to_lists()).to_lists() == both.to_lists()


class Spoilt(torch.nn.Module):
    """A head that writes a value into one logit, in some of its calls.

    Args:
        head: The model's head.
        value: What it writes.
        calls: The calls in which it does, from 0.
    """

    def __init__(self, head: torch.nn.Module, value: float, calls: set[int]) -> None:
        super().__init__()
        self.head, self.value, self.calls, self.count = head, value, calls, 0

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(hidden).clone()
        if self.count in self.calls:
            logits[0, ..., 5] = self.value
        self.count += 1
        return logits


@pytest.mark.parametrize("tokens", [1, 2])
def test_what_is_not_finite_is_an_error(tokens: int) -> None:
    """NaN is no agreement, and an infinite divergence no loss. What both models exclude is none of their answers."""
    model: Any
    model, inputs = pair(padding="none")
    adapter = adapter_for(model)
    candidate = method([1], {"name": "random"})
    head = model.lm_head

    def compared(value: float, *calls: int) -> Fidelity:
        model.lm_head = Spoilt(head, value, set(calls))
        try:
            return UnprunedBatch(adapter, inputs, [1], tokens).fidelity(candidate, [1])
        finally:
            model.lm_head = head

    unpruned = 1 if tokens == 1 else 2 * tokens  # calls of the head: the answer is written, then measured
    with pytest.raises(TokenPruneError, match="the unpruned model's next-token distribution holds NaN"):
        compared(float("nan"), *range(unpruned))
    for value in (float("nan"), -float("inf")):
        with pytest.raises(TokenPruneError, match="the pruned model's next-token distribution holds NaN, or zero"):
            compared(value, *range(unpruned, 99))
    assert compared(-float("inf"), *range(99)).divergence.isfinite().all()


@pytest.mark.parametrize(
    "pruner",
    [
        {"name": "topk", "scorer": "vision_attention"},
        {"name": "pool", "scorer": "vision_attention", "pruner": "max_min"},
        {"name": "dpp", "relevance": "vision_attention"},
    ],
    ids=lambda pruner: pruner["name"],
)
@pytest.mark.parametrize("layer", [0, 3])
@torch.no_grad()
def test_readers_of_the_tower_see_it_run(pruner: dict[str, Any], layer: int) -> None:
    """The image features are shared with other methods, but not with these; also between two that share them."""
    model, inputs = pair(padding="left")
    budget = {"name": "keep_ratio", "ratio": 0.4}
    candidate = tp.Method(layers={"name": "fixed", "layers": [layer]}, pruner=pruner, budget=budget)
    other = method([3], {"name": "matrix_entropy"})
    batch = UnprunedBatch(adapter_for(model), inputs, [layer, 3])
    first = batch.fidelity(other, [3])
    found = batch.fidelity(candidate, [layer])
    p = plain_logits(model, inputs).double().softmax(-1)
    with tp.apply(model, candidate):
        q = plain_logits(model, inputs).double().softmax(-1)
    assert found.divergence.tolist() == pytest.approx((p * (p.log() - q.log())).sum(-1).tolist(), abs=1e-6)
    assert found.divergence.max() > 1e-4
    assert batch.fidelity(other, [3]).to_lists() == first.to_lists()


@pytest.mark.parametrize("setting", [{"num_beams": 2}, {"return_dict_in_generate": True}])
def test_the_models_own_generation_settings_change_nothing(setting: dict[str, Any]) -> None:
    model, inputs = pair(padding="left")
    candidate = method([1], {"name": "matrix_entropy"})
    config: Any = model.generation_config
    expected = UnprunedBatch(adapter_for(model), inputs, tokens=2).fidelity(candidate, [1])
    own = {name: getattr(config, name) for name in setting}
    config.__dict__.update(setting)
    try:
        found = UnprunedBatch(adapter_for(model), inputs, tokens=2).fidelity(candidate, [1])
    finally:
        config.__dict__.update(own)
    assert found.to_lists() == expected.to_lists()


def test_several_tokens_behind_padding_are_refused() -> None:
    model, inputs = pair(padding="right")
    with pytest.raises(TokenPruneError, match="padded on the right; pad them on the left"):
        UnprunedBatch(adapter_for(model), inputs, tokens=2)
