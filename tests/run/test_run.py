"""What a run shows of its last prefill: every family's kept tokens, scores and merges, in the order of the prompt."""

from __future__ import annotations

import gc
import weakref
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import tokenprune as tp
from tests.support.matrix import model_of
from tests.support.method_table import prepared, variants
from tests.support.simple import pair
from tests.support.tiny import CASES, CORE
from tokenprune.errors import ConfigError, SampleError, TokenPruneError, UnsupportedFeatureError, UnsupportedModelError

TWO_STAGES = tp.Method.from_dict(
    {
        "pruner": {"name": "topk", "scorer": {"name": "random", "seed": 1}},
        "layers": {"name": "fixed", "layers": [1, 2]},
        "budget": {"name": "keep_schedule", "ratios": [0.75, 0.5]},
    }
)


def visual_positions(case: Any, inputs: dict[str, torch.Tensor], sample: int) -> list[int]:
    """Positions of a sample's placeholders, in the prompt's order."""
    return [at for at, token in enumerate(inputs["input_ids"][sample].tolist()) if token in case.visual_ids]


@pytest.mark.parametrize("family", CORE)
def test_every_family_shows_the_kept_tokens_in_the_order_of_the_prompt(family: str) -> None:
    case, model = CASES[family], model_of(family, "sdpa")
    for variant in variants(family):
        inputs = case.batch(model, 2, "left", seed=3, variant=variant).inputs
        with torch.no_grad(), tp.apply(model, TWO_STAGES) as run:
            model(**inputs)
        for sample in range(2):
            positions = visual_positions(case, inputs, sample)
            look = run.look(sample=sample)
            assert look.tokens == len(positions)
            for stage, shown in zip(run.stages, look.stages, strict=True):
                kept = {int(position) for position in stage.kept[sample] if position >= 0}
                assert [position in kept for position in positions] == shown.kept.tolist()
                assert shown.layer == stage.layer
                assert shown.scores is not None
            # what the first stage dropped has no score at the second
            first, second = look.stages
            assert second.scores is not None
            assert np.isnan(second.scores).tolist() == (~first.kept).tolist()
            places = {tuple(cell) for cell in look.cells.tolist() if cell[0] >= 0}
            assert len(places) == int((look.cells[:, 0] >= 0).sum())  # no two tokens at one place


def test_scores_and_merges_are_those_of_the_tokens() -> None:
    """An annotation is the score, so that every token's is known; ToMe's targets are kept, and each is in its image."""
    model, inputs = pair()
    method = tp.load_method("oracle", keep_tokens=5)
    given = [torch.arange(16.0), 100 - torch.arange(16.0)]
    with torch.no_grad(), tp.apply(model, method) as run:
        run.annotate(foreground=given)
        model(**inputs)
    for sample in range(2):
        stage = run.look(sample=sample).stages[0]
        assert stage.scores is not None
        assert stage.scores.tolist() == given[sample].tolist()
        assert stage.kept.tolist() == (given[sample] >= given[sample].sort().values[-5]).tolist()
    inputs = CASES["llava"].batch(model, 2, "left", seed=3, variant="multi").inputs
    with torch.no_grad(), tp.apply(model, prepared("tome")) as run:
        model(**inputs)
    look = run.look(sample=1)
    merged = look.stages[0].merged
    assert merged is not None
    assert ((merged >= 0) == ~look.kept).all()
    assert look.kept[merged[merged >= 0]].all()
    assert (look.cells[merged[merged >= 0], 0] == look.cells[merged >= 0, 0]).all()


def test_merges_behind_an_earlier_stage_name_the_tokens_of_the_prompt() -> None:
    """The second stage counts the tokens that the first left; a look counts those of the prompt."""
    model, inputs = pair()
    scored = {"name": "topk", "scorer": {"name": "random", "seed": 1}}
    method = TWO_STAGES.model_dump(mode="json") | {
        "pruner": {"name": "stages", "pruners": [scored, {"name": "tome", "steps": 2}]}
    }
    with torch.no_grad(), tp.apply(model, tp.Method.from_dict(method)) as run:
        model(**inputs)
    for sample in range(2):
        first, second = run.look(sample=sample).stages
        assert second.merged is not None
        gone = first.kept & ~second.kept
        assert (second.merged >= 0).tolist() == gone.tolist()
        assert second.kept[second.merged[gone]].all()
        # the same in positions, by hand: the tokens that entered, in order
        tokens = run.stages[1].tokens
        assert tokens is not None
        assert tokens.merged is not None
        entered = [int(at) for at in first.kept.nonzero()[0]]
        expected = {entered[at]: entered[int(to)] for at, to in enumerate(tokens.merged[sample]) if to >= 0}
        assert {int(at): int(second.merged[at]) for at in gone.nonzero()[0]} == expected


@pytest.mark.parametrize("family", ["llava_next", "qwen2_vl", "idefics3"])
def test_a_run_can_be_drawn_after_its_block_and_after_generate(family: str) -> None:
    case, model = CASES[family], model_of(family, "sdpa")
    inputs = case.batch(model, 2, "left", seed=3, variant="multi").inputs
    with torch.no_grad(), tp.apply(model, TWO_STAGES) as run:
        model(**inputs)
        forward = run.look(sample=1)
        model.generate(**inputs, max_new_tokens=2, do_sample=False)
    generated = run.look(sample=1)
    assert generated.views == forward.views
    assert (generated.cells == forward.cells).all()


def test_a_run_does_not_hold_the_model() -> None:
    model, inputs = pair()
    gone = weakref.ref(model)
    with torch.no_grad(), tp.apply(model, TWO_STAGES) as run:
        model(**inputs)
    del model
    gc.collect()
    assert gone() is None
    assert run.look().tokens == 16


@pytest.mark.parametrize("method", ["fastv", "norm-hidden-large", "tome"])
def test_a_forward_with_gradients_can_be_drawn_and_holds_no_graph(method: str) -> None:
    model, inputs = pair()
    gone = weakref.ref(model)
    with tp.apply(model, tp.load_method(method, keep_tokens=4)) as run:
        model(**inputs)
    assert run.look().kept.sum() == 4
    assert "data:image/png;base64," in run._repr_html_()
    del model
    gc.collect()
    assert gone() is None


def test_pictures_and_figures() -> None:
    model, inputs = pair()
    picture = Image.fromarray(np.arange(32 * 32 * 3, dtype=np.uint8).reshape(32, 32, 3))
    with torch.no_grad(), tp.apply(model, TWO_STAGES) as run:
        model(**inputs)
    look = run.look([picture], question="what?", answer="a", expected="b")
    assert (look.pictures[0] == np.asarray(picture)).all()
    assert (look.method, look.budget) == ("topk", "keep_schedule (0.75, 0.5)")
    assert (look.question, look.answer, look.expected) == ("what?", "a", "b")
    assert len(run.figure([picture]).axes) >= 2
    drawn: Any = run.figure([picture])
    assert drawn._repr_png_().startswith(b"\x89PNG")  # no magic command is needed
    assert "data:image/png;base64," in look._repr_html_()  # type: ignore[attr-defined]
    said: list[str] = []
    run.report._repr_pretty_(SimpleNamespace(text=said.append), False)
    assert said == [str(run.report)]
    html = run._repr_html_()
    assert "data:image/png;base64," in html
    assert "layer 2: visual tokens [12, 12] -&gt; [8, 8]" in html


def test_what_cannot_be_drawn() -> None:
    model, inputs = pair()
    with torch.no_grad(), tp.apply(model, TWO_STAGES) as run:
        with pytest.raises(UnsupportedFeatureError, match="nothing to draw: no prompt"):
            run.look()
        assert "no prefill yet" in run._repr_html_()
        text = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        text = {name: values.masked_fill(text["input_ids"] == 150, 5) for name, values in text.items()}
        model(**text)
        with pytest.raises(UnsupportedFeatureError, match="nothing to draw"):
            run.look()
        model(**inputs)
    wide = np.zeros((8, 16, 3), dtype=np.uint8)
    deep = Image.fromarray(np.full((8, 8), 60000, dtype=np.uint16))
    cases: list[tuple[dict[str, Any], type[TokenPruneError], str]] = [
        ({"pictures": [deep]}, ConfigError, "a picture has the mode 'I;16'"),
        ({"sample": 2}, ConfigError, "there is no sample 2: the last batch has 2; samples count from 0"),
        ({"pictures": [wide]}, ConfigError, "no squares were given without a processor"),
        ({"pictures": [wide[:, :8]] * 3}, SampleError, "take 1 pictures, but 3 were given"),
        ({"pictures": ["cat.png"]}, ConfigError, "a picture is str"),
        ({"pictures": "cat.png"}, ConfigError, r"pictures is a single picture; give a list: \[picture\]"),
        ({"pictures": Image.fromarray(wide)}, ConfigError, "pictures is a single picture"),
        ({"pictures": wide}, ConfigError, "pictures is a single picture"),
        ({"pictures": 5}, ConfigError, "pictures is int"),
        ({"pictures": [wide[:, :8] / 255]}, ConfigError, r"a picture is float64 \[8, 8, 3\]"),
    ]
    for arguments, kind, message in cases:
        with pytest.raises(kind, match=message):
            run.look(**arguments)


def test_a_family_without_a_grid() -> None:
    family = "got_ocr2"
    model = model_of(family, "sdpa")
    inputs = CASES[family].batch(model, 2, "left", seed=3).inputs
    with torch.no_grad(), tp.apply(model, TWO_STAGES) as run:
        model(**inputs)
    with pytest.raises(UnsupportedModelError, match="knows no token grid: it cannot be drawn"):
        run.figure()
    assert "layer 1" in run._repr_html_()
