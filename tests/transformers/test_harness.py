"""The harness itself; a checkout of transformers is not needed. What it runs is described in README.md."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import transformers

from tests.support.tiny import CASES
from tests.transformers import run
from tests.transformers.applied import allowances, geometry, methods
from tests.transformers.applied.chosen import FAMILIES, chosen
from tests.transformers.applied.models import Models, takes_pictures, watched
from tests.transformers.applied.outcomes import (
    FAILED,
    PASSED,
    REFUSED,
    SKIPPED,
    Outcome,
    details,
    judge,
    name_of,
    read,
    refusal,
    table,
    write,
)

# ---- outcomes ---


def outcomes(**results: str) -> dict[str, Outcome]:
    """Outcomes of tests of one family, by the test's name."""
    return {f"llava::{name}": Outcome(f"llava::{name}", result, "why 7") for name, result in results.items()}


def test_the_name_of_a_test() -> None:
    assert name_of("tests/models/llava/test_modeling_llava.py::Case::test_it") == "llava::Case::test_it"


def test_a_refusal_is_found_in_the_chain_of_an_exception() -> None:
    refused = KeyError("ours")
    outer = ValueError("theirs")
    outer.__cause__ = refused
    assert refusal(outer, KeyError) is refused
    assert refusal(ValueError("theirs"), KeyError) is None
    outer.__cause__ = outer
    assert refusal(outer, KeyError) is None


def test_of_the_subtests_of_a_test_the_worst_counts(tmp_path: Path) -> None:
    file = tmp_path / "half.jsonl"
    for number, result in enumerate((PASSED, FAILED, REFUSED, SKIPPED)):
        write(file, Outcome("llava::a", result, where=("there",), drops=number, outputs=("x",) * number))
    for result in (PASSED, SKIPPED):
        write(file, Outcome("llava::b", result))
    assert read(file) == {
        "llava::a": Outcome("llava::a", FAILED, where=("there",), drops=3, outputs=("x", "x", "x")),
        "llava::b": Outcome("llava::b", PASSED),
    }
    assert read(tmp_path / "absent") == {}


def test_whose_fault_it_is() -> None:
    before = outcomes(a=PASSED, b=PASSED, c=PASSED, d=PASSED, e=FAILED, f=SKIPPED, g=FAILED, h=PASSED)
    now = outcomes(a=PASSED, b=REFUSED, c=FAILED, e=FAILED, f=FAILED, g=REFUSED, h=SKIPPED)
    verdict = judge(before, now, equal=False, drops=True)
    assert verdict.passed == 1
    assert verdict.refused == {"why N": ["llava::b", "llava::g"]}
    assert verdict.failures == {
        "llava::c": "failed | why 7",
        "llava::d": "it did not run",
        "llava::h": "skipped | why 7",
    }
    assert (verdict.not_ours, verdict.left_out, verdict.idle) == (1, 1, ["llava"])
    excused = judge(before, now, equal=False, drops=True, excused={"c", "d"})
    assert set(excused.failures) == {"llava::d", "llava::h"}, "one that did not run is not excused"


def test_outputs_have_to_be_equal_where_nothing_is_dropped() -> None:
    before = {"llava::t": Outcome("llava::t", PASSED, outputs=("a", "b"))}
    assert not judge(before, before, equal=True, drops=False).failures
    for outputs, what in ((("a", "c"), "call 1 of 2: c for b"), (("a",), "1 calls for 2")):
        now = {"llava::t": Outcome("llava::t", PASSED, outputs=outputs)}
        assert what in judge(before, now, equal=True, drops=False).failures["llava::t"]
        assert not judge(before, now, equal=False, drops=False).failures


def test_what_is_printed() -> None:
    verdict = judge(outcomes(a=PASSED, b=PASSED, c=PASSED), outcomes(a=PASSED, b=REFUSED, c=FAILED), True, True)
    lines = details("half", verdict).splitlines()
    assert lines == [
        "half: 1 refused: why N",
        "    b (1)",
        "half: FAILED llava::c: failed | why 7",
        "half: FAILED llava: no test of this family dropped a visual token",
    ]
    head, row = table({"half": verdict}).splitlines()
    assert " ".join(head.split()) == "mode passed with a drop refused failed failed without us skipped"
    assert row.split() == ["half", "1", "0", "1", "1", "0", "0"]


# ---- what runs ---


@pytest.mark.parametrize("name", ["test_beam_search_generate", "test_left_padding_compatibility", "test_training"])
def test_tests_that_compare_computations_run(name: str) -> None:
    assert chosen(f"LlavaModelTest::{name}")


@pytest.mark.parametrize("name", ["test_torch_export", "test_resize_embeddings", "test_flash_attn_2_inference"])
def test_tests_of_something_else_do_not(name: str) -> None:
    assert not chosen(f"LlavaModelTest::{name}")


def test_versions_have_to_be_equal() -> None:
    assert run.check_version("5.23.0", "5.23.0", any_version=False) is None
    with pytest.raises(SystemExit, match=r"5\.16\.0.*5\.23\.0.*v5\.23\.0.*--any-version"):
        run.check_version("5.16.0", "5.23.0", any_version=False)
    assert "5.16.0" in (run.check_version("5.16.0", "5.23.0", any_version=True) or "")


def test_a_folder_that_is_no_checkout(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"no checkout of transformers.*README"):
        run.main(["--checkout", str(tmp_path)])


# ---- what is changed in the tests ---


class QwenTester:
    """As in transformers: one visual token per image."""

    image_token_id, vision_start_token_id, pad_token_id = 4, 3, 2
    parent: Any = None

    def prepare_config_and_inputs_for_common(self) -> Any:
        ids = torch.full((2, 30), 9)
        ids[:, 20] = self.image_token_id
        return None, {"input_ids": ids, "pixel_values": torch.rand(2, 12)}


def test_a_wider_prompt() -> None:
    tester = type("Qwen2VLVisionText2TextModelTester", (QwenTester,), {"__module__": "made"})
    module = ModuleType("made")
    vars(module)[tester.__name__] = tester
    geometry.widen([module])
    _, inputs = tester().prepare_config_and_inputs_for_common()
    assert (inputs["input_ids"] == 4).sum(1).tolist() == [8, 8]
    assert inputs["pixel_values"].shape == (16, 12)
    assert inputs["image_grid_thw"].prod(1).tolist() == [8, 8]
    narrow: Any = tester()
    narrow.parent = Namespace(_testMethodName="test_vision_position_ids")
    _, inputs = narrow.prepare_config_and_inputs_for_common()
    assert (inputs["input_ids"] == 4).sum(1).tolist() == [1, 1]


def test_heads_are_told_from_models_that_generate() -> None:
    assert allowances.is_head(transformers.Gemma3ForSequenceClassification)
    assert not allowances.is_head(transformers.Gemma3ForConditionalGeneration)
    assert not allowances.is_head(transformers.Gemma3Model)


# ---- the models of a test ---


def outputs_of(mode: methods.Mode) -> Models:
    """What the calls of a tiny LLaVA return, in a mode."""
    models = Models(methods.method(mode))
    model = CASES["llava"].build()
    inputs = CASES["llava"].inputs(model)
    with torch.no_grad(), watched(models):
        for _ in range(2):
            model(**inputs)
        model.generate(**inputs, max_new_tokens=2, do_sample=False)
        models.end()
    return models


def test_nothing_dropped_changes_nothing_and_half_changes_something() -> None:
    baseline, nothing, half = (
        outputs_of("baseline"),
        outputs_of("nothing-dropped"),
        outputs_of("half"),
    )
    assert sum("200)" in output for output in baseline.outputs) == 4  # logits: three prompts, and a step
    assert nothing.outputs == baseline.outputs
    assert half.outputs[0] == half.outputs[1] != baseline.outputs[0]
    assert (baseline.drops, nothing.drops) == (0, 0)
    assert half.drops == 3
    assert not half.left


def test_an_unsteady_choice_differs_between_calls() -> None:
    unsteady = outputs_of("unsteady")
    assert unsteady.outputs[0] != unsteady.outputs[1]


def test_what_stays_on_a_model_is_seen() -> None:
    models = Models(None)
    model = CASES["llava"].build()
    model.model.left = methods.method("half")
    models._look(model)
    assert len(models.left) == 1
    assert "on model" in models.left[0]


def test_which_models_get_a_method() -> None:
    model = CASES["llava"].build()
    assert takes_pictures(model)
    assert takes_pictures(model.model)
    assert not takes_pictures(model.get_decoder())


# ---- all of it, on a checkout made here ---

CASE = """
import unittest
import torch
from transformers.testing_utils import run_test_using_subprocess
from tests.models.llava.tiny import inputs, model

class MadeModelTest(unittest.TestCase):
    @run_test_using_subprocess
    def test_two_calls(self):
        made = model()
        assert torch.equal(made(**inputs(made)).logits, made(**inputs(made)).logits)

    def test_shift_labels(self):
        made = model()
        given = inputs(made)
        made(**given, labels=given["input_ids"], output_router_logits=True)

    def test_fails_alone(self):
        raise ValueError

    def test_export(self):
        raise ValueError
"""
FULL_LENGTH = """
    def test_full_length(self):
        made = model()
        given = inputs(made)
        assert made(**given).logits.shape[1] == given["input_ids"].shape[1]
"""


def made_checkout(folder: Path, case: str) -> Path:
    """A checkout with one file of tests."""
    tests = folder / "tests" / "models" / "llava"
    tests.mkdir(parents=True)
    for package in (tests, tests.parent, tests.parents[1]):
        (package / "__init__.py").touch()
    (tests / "test_modeling_llava.py").write_text(case, encoding="utf-8")
    (tests / "tiny.py").write_text(TINY, encoding="utf-8")
    source = folder / "src" / "transformers"
    source.mkdir(parents=True)
    (source / "__init__.py").write_text(f'__version__ = "{transformers.__version__}"\n', encoding="utf-8")
    return folder


TINY = """
import torch
import transformers as tf

def model():
    torch.manual_seed(0)
    part = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = {**part, "model_type": "clip_vision_model", "image_size": 16, "patch_size": 4, "projection_dim": 32}
    config = tf.LlavaConfig(
        vision_config=vision, text_config={**part, "model_type": "llama", "vocab_size": 99}, image_token_index=4,
        image_seq_length=16,
    )
    return tf.LlavaForConditionalGeneration(config).eval()

def inputs(model):
    ids = torch.tensor([[1, *[4] * 16, 7, 8]])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": torch.ones(1, 3, 16, 16)}
"""


@pytest.mark.slow
def test_a_whole_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkout = made_checkout(tmp_path / "checkout", CASE)
    options = ["--checkout", str(checkout), "--families", "llava", "--outcomes", str(tmp_path / "outcomes")]
    assert run.main(options) == 0
    printed = capsys.readouterr().out
    assert "half: 1 refused: UnsupportedFeatureError: labels" in printed
    rows = {line.split()[0]: line.split()[1:] for line in printed.splitlines()[-3:]}
    assert rows == {
        "baseline": ["2", "0", "0", "0", "1", "0"],
        "nothing-dropped": ["1", "0", "1", "0", "1", "0"],
        "half": ["1", "1", "1", "0", "1", "0"],
    }
    assert {file.stem for file in (tmp_path / "outcomes").iterdir()} == set(run.MODES)


@pytest.mark.slow
def test_a_run_that_finds_something(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A result that is shorter than the test wants, and one that is another one in the second call."""
    checkout = made_checkout(tmp_path / "checkout", CASE + FULL_LENGTH)
    assert run.main(["--checkout", str(checkout), "--families", "llava", "--unsteady"]) == 1
    printed = capsys.readouterr().out
    for name in ("test_full_length", "test_two_calls"):
        assert f"unsteady: FAILED llava::MadeModelTest::{name}" in printed


def test_the_families_are_told_to_pytest() -> None:
    options, of_pytest = run.parse(["--checkout", "there", "-k", "beam"])
    assert options.families == FAMILIES
    assert of_pytest == ["-k", "beam"]
