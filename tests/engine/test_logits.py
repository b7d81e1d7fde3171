"""``logits_to_keep`` names positions of the prompt, not rows that are left."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
import torch

import tokenprune as tp
from tests.support.matrix import model_of, stages_of
from tests.support.oracle import oracle_logits, tolerance
from tests.support.simple import fastv
from tests.support.tiny import CASES
from tokenprune.errors import UnsupportedFeatureError

RANDOM = tp.Method(
    layers={"name": "fixed", "layers": [1]},
    pruner={"name": "topk", "scorer": "random"},
    budget={"name": "keep_ratio", "ratio": 0.5},
)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "gemma3"])
@pytest.mark.parametrize("variant", ["image", "ragged"])
@torch.no_grad()
def test_positions_mean_the_prompt(family: str, variant: Any) -> None:
    """The logits of text before and behind the image are the oracle's at these positions."""
    case = CASES[family]
    model = case.build()
    inputs = case.batch(model, 2, "left", variant=variant).inputs
    width = inputs["input_ids"].shape[1]
    wanted = torch.tensor([width - 1, -2, width - 3])
    with tp.apply(model, fastv(name="keep_ratio", ratio=0.3)) as run:
        picked = model(**inputs, logits_to_keep=wanted).logits
        last = model(**inputs, logits_to_keep=2).logits
    expected = oracle_logits(model, inputs, stages_of(run), case.visual_ids)
    assert picked.shape == expected[:, wanted].shape
    torch.testing.assert_close(picked, expected[:, wanted], atol=tolerance(expected), rtol=0)
    torch.testing.assert_close(last, expected[:, -2:], atol=tolerance(expected), rtol=0)


@pytest.mark.parametrize("family", [name for name, case in CASES.items() if not case.hybrid])
@pytest.mark.each("family")
@torch.no_grad()
def test_every_family_returns_what_it_returns_unpruned(family: str) -> None:
    """As many logits as unpruned, those of the positions among all pruned ones; generate runs the head on one row."""
    case, model = CASES[family], model_of(family, "sdpa")
    inputs = case.batch(model, 2, "left").inputs
    knows = "logits_to_keep" in inspect.signature(model.forward).parameters
    heads: list[int] = []
    hook = model.get_output_embeddings().register_forward_hook(lambda module, args, out: heads.append(out.shape[1]))
    try:
        with tp.apply(model, RANDOM) as run:
            run.annotate(sample_ids=[0, 1])
            every = model(**inputs).logits
            for wanted in (1, 2, torch.tensor([-1, -3])) if knows else ():
                picked = model(**inputs, logits_to_keep=wanted).logits
                assert picked.shape[1] == (wanted if isinstance(wanted, int) else len(wanted))
                index = slice(-wanted, None) if isinstance(wanted, int) else wanted
                torch.testing.assert_close(picked, every[:, index], atol=1e-5, rtol=0)
            assert run.report.reason is None
            heads.clear()
            model.generate(**inputs, max_new_tokens=2, do_sample=False)
    except tp.TokenPruneError as error:
        assert not case.core
        pytest.skip(f"refused: {error}")
    finally:
        hook.remove()
    if knows:
        assert heads == [1, 1]


@pytest.mark.slow
@pytest.mark.parametrize("family", [name for name, case in CASES.items() if not case.hybrid and case.generates])
@pytest.mark.each("family")
@torch.no_grad()
def test_a_model_that_ignores_it_returns_all_logits_pruned_too(family: str) -> None:
    """Some models swallow any keyword; what they return unpruned tells."""
    case, model = CASES[family], model_of(family, "sdpa")
    inputs = case.batch(model, 2, "left").inputs
    try:
        unpruned = model(**inputs, logits_to_keep=2).logits.shape[1]
    except TypeError:
        pytest.skip("the model takes no logits_to_keep")
    try:
        with tp.apply(model, RANDOM):
            every = model(**inputs).logits.shape[1]
            picked = model(**inputs, logits_to_keep=2).logits.shape[1]
    except tp.TokenPruneError as error:
        assert not case.core
        pytest.skip(f"refused: {error}")
    assert picked == (2 if unpruned == 2 else every)


@torch.no_grad()
def test_dropped_positions_are_an_error() -> None:
    case = CASES["llava"]
    model = case.build()
    inputs = case.batch(model, 1).inputs
    visual = (inputs["input_ids"][0] == case.visual_ids[0]).nonzero()[:, 0]
    with tp.apply(model, fastv()) as run:
        model(**inputs)
        kept = run.stages[0].kept[0]
        gone = int(next(place for place in visual if place not in kept))
        assert model(**inputs, logits_to_keep=kept).logits.shape[1] == len(kept)
        with pytest.raises(UnsupportedFeatureError, match=f"sample 0 that were dropped: {gone}"):
            model(**inputs, logits_to_keep=torch.tensor([gone, 0]))
        with pytest.raises(UnsupportedFeatureError, match="were dropped"):
            model(**inputs, logits_to_keep=inputs["input_ids"].shape[1] - 1)
        for wrong in (torch.tensor([999]), [999], "last"):
            with pytest.raises(UnsupportedFeatureError, match="does not index a prompt of"):
                model(**inputs, logits_to_keep=wrong)


@pytest.mark.parametrize(
    "wanted", [[0, -1, 2], slice(0, 3), slice(-2, None), torch.tensor(-1), torch.tensor([1, 1]), "mask"], ids=str
)
@torch.no_grad()
def test_every_index_that_the_model_takes(wanted: Any) -> None:
    case = CASES["llava"]
    model = case.build()
    inputs = case.batch(model, 2, "left", variant="ragged").inputs
    if wanted == "mask":
        wanted = torch.zeros(inputs["input_ids"].shape[1], dtype=torch.bool)
        wanted[[0, -1]] = True
    with tp.apply(model, fastv(name="keep_ratio", ratio=0.3)) as run:
        picked = model(**inputs, logits_to_keep=wanted).logits
    expected = oracle_logits(model, inputs, stages_of(run), case.visual_ids)[:, wanted]
    assert picked.shape == expected.shape
    torch.testing.assert_close(picked, expected, atol=tolerance(expected), rtol=0)


@torch.no_grad()
def test_a_prompt_that_ends_with_a_dropped_token_is_an_error() -> None:
    """Text would be generated from another position."""
    case = CASES["llava"]
    model = case.build()
    inputs = case.batch(model, 1).inputs
    end = int((inputs["input_ids"][0] == case.visual_ids[0]).nonzero()[-1]) + 1
    inputs = {**inputs, **{name: inputs[name][:, :end] for name in ("input_ids", "attention_mask")}}
    method = tp.Method(
        layers={"name": "fixed", "layers": [1]},
        pruner={"name": "topk", "scorer": "random"},
        budget={"name": "drop_all"},
    )
    with tp.apply(model, method), pytest.raises(UnsupportedFeatureError, match="end the prompt with text"):
        model.generate(**inputs, max_new_tokens=2)


@pytest.mark.parametrize("wanted", [(1,), np.int64(-2), np.array([0, 1]), -3, -30], ids=str)
@torch.no_grad()
def test_negative_numbers_tuples_and_numpy(wanted: Any) -> None:
    """A negative number leaves out the first positions; the model reads NumPy's integers as one position."""
    case = CASES["llava"]
    model = case.build()
    inputs = case.batch(model, 2, "left").inputs
    with tp.apply(model, fastv()) as run:
        if isinstance(wanted, int) and wanted == -3:
            with pytest.raises(UnsupportedFeatureError, match="were dropped"):
                model(**inputs, logits_to_keep=wanted)
            return
        picked = model(**inputs, logits_to_keep=wanted).logits
    index = slice(-wanted, None) if isinstance(wanted, int) else list(wanted) if isinstance(wanted, tuple) else wanted
    expected = oracle_logits(model, inputs, stages_of(run), case.visual_ids)[:, index]
    assert picked.shape == expected.shape
    torch.testing.assert_close(picked, expected, atol=1e-4, rtol=0)


@torch.no_grad()
def test_a_family_without_logits_to_keep_after_a_prompt_that_ends_in_an_image() -> None:
    """``generate`` reads the last position, and VideoLLaMA 3 has no argument that would say so."""
    case = CASES["video_llama_3"]
    model = case.build()
    inputs = case.batch(model, 1).inputs
    ids = inputs["input_ids"]
    end = int(torch.isin(ids[0], torch.tensor(case.visual_ids)).nonzero()[-1]) + 1
    inputs = {name: value[:, :end] if value.shape == ids.shape else value for name, value in inputs.items()}
    kept = refused = 0
    for seed in range(8):
        method = tp.Method(
            layers={"name": "fixed", "layers": [1]},
            pruner={"name": "topk", "scorer": {"name": "random", "seed": seed}},
            budget={"name": "keep_ratio", "ratio": 0.5},
        )
        with tp.apply(model, method) as run:
            model(**inputs)
            is_kept = end - 1 in run.stages[0].kept
            run.annotate(sample_ids=[0])
            if is_kept:
                kept += 1
                model.generate(**inputs, max_new_tokens=2)
                continue
            refused += 1
            with pytest.raises(UnsupportedFeatureError, match="end the prompt with text"):
                model.generate(**inputs, max_new_tokens=2)
    assert kept
    assert refused
