"""Answers with a method on the model: those of `generate` inside `apply`, with what each of them cost."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

import tokenprune as tp
from tests.support.checkpoints import FAMILIES, pictures
from tokenprune.core.component import FromRegistry
from tokenprune.errors import ConfigError, SampleError, TokenPruneError, TokenPruneWarning
from tokenprune.harness.answerer import Answer, Answerer, Likelihood, cut
from tokenprune.models.base import LoadedModel
from tokenprune.models.hf import HuggingFace
from tokenprune.tasks.base import Sample


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    folder = FAMILIES["llava"].save(tmp_path_factory.mktemp("llava"))
    return HuggingFace(checkpoint=str(folder), device="cpu", dtype="float32", instruction="").load()


def method(scorer: str = "fastv", ratio: float = 0.5) -> tp.Method:
    return tp.Method.from_dict(
        {
            "layers": {"name": "fixed", "layers": [1]},
            "pruner": {"name": "topk", "scorer": scorer},
            "budget": {"name": "keep_ratio", "ratio": ratio},
            "label": scorer,
        }
    )


def samples() -> list[Sample]:
    texts = ("what is this", "what")
    return [Sample(f"s{at}", (picture,), texts[at], "", "", f"s{at}") for at, picture in enumerate(pictures())]


def answered(found: list[Any]) -> list[Answer]:
    assert all(isinstance(item, Answer) for item in found), found
    return found


def test_answers_are_those_of_generate(loaded: LoadedModel) -> None:
    inputs = loaded.encode(samples())
    with torch.no_grad(), tp.apply(loaded.model, method()):
        ids = loaded.model.generate(**inputs, max_new_tokens=4, do_sample=False)
    with Answerer(loaded, method()) as answerer:
        found = answered(answerer.answer(samples(), 4))
    assert [item.text for item in found] == loaded.decode(ids[:, inputs["input_ids"].shape[1] :])
    assert [item.prompt for item in found] == inputs["attention_mask"].sum(1).tolist()
    assert [(item.cost["visual_before"], item.cost["visual_after"]) for item in found] == [(16, 8), (16, 8)]
    assert all(item.cost["flops"] < item.cost["flops_unpruned"] for item in found)
    assert [item.tokens for item in found] == [4, 4]


def test_the_method_is_off_the_model_at_the_end(loaded: LoadedModel) -> None:
    unpruned = answered(Answerer(loaded, None).answer(samples(), 4))
    with Answerer(loaded, method(ratio=0.25)) as answerer:
        assert answerer.name == "fastv"
        answerer.answer(samples(), 4)
    again = answered(Answerer(loaded, None).answer(samples(), 4))
    assert again == unpruned
    assert [item.cost["visual_after"] for item in again] == [16, 16]


def test_random_choices_depend_on_numbers(loaded: LoadedModel) -> None:
    """And not on the batch."""
    with Answerer(loaded, method("random", 0.1)) as answerer:
        both = answered(answerer.answer(samples(), 6, numbers=[4, 7]))
        alone = answered(answerer.answer(samples()[1:], 6, numbers=[7]))
        others = {answered(answerer.answer(samples()[1:], 6, numbers=[number]))[0].text for number in range(8)}
    assert both[1].text == alone[0].text
    assert len(others) > 1


def test_stop_texts_end_an_answer(loaded: LoadedModel) -> None:
    answerer = Answerer(loaded, None)
    whole = answered(answerer.answer(samples()[:1], 6))[0]
    words = whole.text.split()
    assert len(set(words)) > 2
    stop = words[2]
    stopped = answered(answerer.answer(samples()[:1], 6, stops=[stop]))[0]
    assert stopped.text == cut(whole.text, [stop]).strip()
    assert (stopped.cut, whole.cut) == (True, False)
    assert stopped.tokens < whole.tokens


@pytest.mark.parametrize("stops, left", [((), "a b c"), (("c", "b"), "a "), (("z",), "a b c"), (("a",), "")])
def test_cut(stops: tuple[str, ...], left: str) -> None:
    assert cut("a b c", stops) == left


def test_drawn_answers_differ_from_draw_to_draw(loaded: LoadedModel) -> None:
    drawn = {"do_sample": True, "temperature": 2.0}
    answerer = Answerer(loaded, None)
    first = [answered(answerer.answer(samples(), 6, generation=drawn))[0].text for _ in range(2)]
    texts = [answered(answerer.answer(samples(), 6, generation=drawn, draws=[at, at]))[0].text for at in range(3)]
    assert first[0] == first[1] == texts[0]
    assert len(set(texts)) == 3


def test_settings_that_pruned_models_cannot_follow(loaded: LoadedModel) -> None:
    with pytest.raises(ConfigError, match="cannot be used while tokens are pruned"):
        Answerer(loaded, None).answer(samples(), 2, generation={"prompt_lookup_num_tokens": 2})


def test_likelihoods_do_not_depend_on_the_batch(loaded: LoadedModel) -> None:
    """Whose continuations have different lengths; the greedy answer is greedy."""
    with Answerer(loaded, method()) as answerer:
        text = answered(answerer.answer(samples()[:1], 3))[0].text
        both = answerer.log_likelihoods(samples(), [text, "w20"])
        alone = answerer.log_likelihoods(samples()[1:], ["w20"])
    first, second = both
    (single,) = alone
    assert isinstance(first, Likelihood)
    assert isinstance(second, Likelihood)
    assert isinstance(single, Likelihood)
    assert (first.greedy, first.tokens, second.tokens) == (True, 3, 1)
    assert second.log_probability == pytest.approx(single.log_probability, abs=1e-5)
    assert second.cost == single.cost


def test_an_empty_continuation(loaded: LoadedModel) -> None:
    (found,) = Answerer(loaded, None).log_likelihoods(samples()[:1], [""])
    assert isinstance(found, SampleError)
    assert "has no tokens" in str(found)


def test_what_fails_alone_does_not_hurt_the_others(loaded: LoadedModel) -> None:
    good, other = samples()
    bad = replace(other, question="<image> what")
    answerer = Answerer(loaded, None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(TokenPruneWarning, match="asked one by one"):
            answerer.answer([good, bad], 3)
    answerer = Answerer(loaded, None)
    with pytest.warns(TokenPruneWarning):
        first, second = answerer.answer([good, bad], 3)
    assert first == answerer.answer([good], 3)[0]
    assert isinstance(second, TokenPruneError)
    assert "placeholders" in str(second)


def test_calibration_decides_the_layer(loaded: LoadedModel) -> None:
    found = tp.load_method("entropyprune", keep_ratio=0.5)
    with Answerer(loaded, found, samples()) as measured:
        assert measured.choice is not None
        assert "calibration" not in measured.choice.reason or measured.choice.layers
        reason = measured.choice.reason
    with Answerer(loaded, found) as unmeasured:
        assert unmeasured.choice is not None
        assert unmeasured.choice.reason != reason


def test_the_fingerprint_changes_with_what_answers_depend_on(loaded: LoadedModel) -> None:
    def fingerprints() -> Iterator[str | None]:
        budget = FromRegistry("budgets").build({"name": "keep_ratio", "ratio": 0.5})
        yield Answerer(loaded, None).fingerprint()
        for made in (method(), method("random"), method(ratio=0.25)):
            with Answerer(loaded, made) as answerer:
                yield answerer.fingerprint()
        yield Answerer(loaded, None, smaller=budget).fingerprint()

    found, again = list(fingerprints()), list(fingerprints())
    assert found == again
    assert None not in found
    assert len(set(found)) == len(found)
    weight = loaded.model.get_output_embeddings().weight
    with torch.no_grad():
        weight.add_(0.5)
    try:
        assert Answerer(loaded, None).fingerprint() != found[0]
    finally:
        with torch.no_grad():
            weight.sub_(0.5)
