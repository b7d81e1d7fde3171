"""The decoder's final norm as a signal: it is the one that the model applies; the scorer that reads it is literal."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tokenprune as tp
from tests.ops.test_entropy import literal
from tests.support.oracle import decoder_layers
from tests.support.tiny import CASES
from tokenprune.adapters import adapter_for
from tokenprune.adapters.decoder_stack import final_norm
from tokenprune.errors import ConfigError, UnsupportedModelError
from tokenprune.scorers.matrix_entropy import MatrixEntropy
from tokenprune.testing import make_context


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_it_is_the_norm_that_the_model_applies(name: str) -> None:
    """The last hidden states that a model returns are those of its last layer, behind the norm."""
    case = CASES[name]
    model = case.build()
    seen: list[Any] = []
    hook = decoder_layers(model)[-1].register_forward_hook(lambda module, args, output: seen.append(output))
    inputs = case.batch(model, 2, "none", seed=1).inputs
    output = model(**inputs, output_hidden_states=True)
    returned = getattr(output, "language_model_outputs", output).hidden_states[-1]  # BLIP-2 and its kin nest them
    hook.remove()
    last = seen[0] if isinstance(seen[0], Tensor) else seen[0][0]
    norm = adapter_for(model).stack.final_norm()
    assert torch.equal(norm(last), returned)
    assert not torch.equal(last, returned)


def test_a_decoder_without_one_norm_is_refused() -> None:
    class Bare(nn.Module):
        def forward(self, hidden: Tensor) -> Tensor:
            return hidden

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.post_norm = nn.Identity(), nn.Identity()

        def forward(self, hidden: Tensor) -> Tensor:
            normed: Tensor = self.post_norm(self.norm(hidden))
            return normed

    for decoder, found in ((Bare(), "none"), (Two(), "post_norm, norm")):
        with pytest.raises(UnsupportedModelError, match=rf"no single norm behind its last layer \({found}\)"):
            final_norm(decoder)


def test_a_model_whose_norm_is_unknown_is_refused_before_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    model = CASES["llava"].build()
    monkeypatch.setattr(type(model.get_decoder()), "forward", lambda self, *args, **kwargs: None)
    method = method_with(MatrixEntropy(source="hidden", final_norm=True))
    with pytest.raises(UnsupportedModelError, match="use final_norm: false"), tp.apply(model, method):
        pass


def method_with(scorer: MatrixEntropy, layer: int = 2) -> tp.Method:
    return tp.Method(
        layers={"name": "fixed", "layers": [layer]},  # type: ignore[arg-type]
        pruner={"name": "topk", "scorer": scorer},  # type: ignore[arg-type]
        budget={"name": "keep_count", "tokens": 5},  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("normalization", ["trace", "none"])
@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize("name", ["llava", "gemma3", "cohere2_vision"])
@torch.no_grad()
def test_the_score_is_the_entropy_of_the_normed_states(name: str, layer: int, normalization: str) -> None:
    """Against the literal definition, on states that a hook of the test's own recorded."""
    case = CASES[name]
    model: Any = case.build()
    decoder: Any = adapter_for(model).decoder
    with torch.no_grad():  # a norm that changes the ranking
        decoder.norm.weight.copy_(torch.rand(decoder.norm.weight.shape, generator=torch.Generator().manual_seed(0)) * 9)
    batch = case.batch(model, 2, "left", seed=2)
    states: list[Tensor] = []
    hook = decoder_layers(model)[layer].register_forward_pre_hook(
        lambda module, args, kwargs: states.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
    )
    model(**batch.inputs)
    hook.remove()
    normed = decoder.norm(states[0]).unflatten(-1, (adapter_for(model).stack.num_heads(0), -1))
    method = method_with(MatrixEntropy(source="hidden", normalization=normalization, final_norm=True), layer)  # type: ignore[arg-type]
    with tp.apply(model, method) as run:
        model(**batch.inputs)
    for sample in range(2):
        ids = batch.inputs["input_ids"][sample]
        visual = torch.isin(ids, torch.tensor(case.visual_ids)).nonzero()[:, 0].tolist()
        scores = {p: literal(normed[sample, p], normalization == "trace") for p in visual}
        best = sorted(sorted(scores, key=lambda position: (-scores[position], position))[:5])
        assert [int(p) for p in run.stages[0].kept[sample] if p >= 0] == best


def test_the_score_on_plain_tensors() -> None:
    hidden = torch.randn(1, 4, 6, generator=torch.Generator().manual_seed(0))
    weight = torch.tensor([1.0, 5.0, 0.1, 2.0, 0.5, 3.0])
    ctx = make_context(hidden, num_heads=3, final_norm=lambda states: states * weight, needs={"hidden", "final_norm"})
    scores = MatrixEntropy(source="hidden", final_norm=True).score(ctx)
    expected = [literal((hidden[0, token] * weight).unflatten(-1, (3, 2)), True) for token in range(4)]
    assert scores[0].tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("source", ["query", "key", "value"])
def test_only_hidden_states_have_a_final_norm(source: Any) -> None:
    with pytest.raises(ConfigError, match=f"final_norm is for hidden states, and source is '{source}'"):
        MatrixEntropy(source=source, final_norm=True)
    assert MatrixEntropy(source="hidden", final_norm=True).needs == {"hidden", "final_norm"}
    assert MatrixEntropy(source="hidden").needs == {"hidden"}
