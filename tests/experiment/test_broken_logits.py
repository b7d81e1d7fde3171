"""A model whose logits are NaN or infinity writes token 0: that is an error, or a sample left out, and no accuracy."""

from __future__ import annotations

import inspect
import math
from pathlib import Path
from typing import Any

import pytest
import torch

import tokenprune as tp
from tests.support.broken import break_prompts, letter
from tests.support.toy import ToyModel, ToyTask, config
from tokenprune.adapters import adapter_for
from tokenprune.cli.looking import looks, read_sample
from tokenprune.engine.trials.calibrate import last_logits
from tokenprune.engine.trials.divergence import mean_divergence
from tokenprune.engine.trials.fidelity import UnprunedBatch
from tokenprune.errors import SampleError, UnsupportedFeatureError
from tokenprune.experiment import run_experiment
from tokenprune.experiment.results import Results
from tokenprune.models.base import LoadedModel
from tokenprune.selectors.vtw import divergence
from tokenprune.tuning import TuneConfig, run_tune

AVERAGE = {"name": "layer_average", "ratio": 0.5}
FEW = {
    "methods": ["norm-hidden-large"],
    "oracle": False,
    "examples": 0,
    "budgets": [{"name": "keep_count", "tokens": 2}],
}


class Broken(ToyModel):
    """The toy model with NaN in the logits of some prompts; see :func:`tests.support.broken.break_prompts`."""

    letter: str = ""
    infinite: bool = False
    pruned: bool = False

    def load(self) -> LoadedModel:
        loaded = super().load()
        value = math.inf if self.infinite else math.nan
        break_prompts(loaded, letter(self.letter) if self.letter else None, value, self.pruned)
        return loaded


@pytest.mark.parametrize("infinite", [False, True])
def test_a_model_that_is_broken_answers_nothing(tmp_path: Path, infinite: bool) -> None:
    with pytest.raises(
        SampleError, match="none of the first 24 samples can be used; the first: the unpruned model: the"
    ):
        run_experiment(config(str(tmp_path / "out"), model=Broken(infinite=infinite), **FEW))
    assert not (tmp_path / "out").exists()


def test_a_method_that_breaks_the_model_is_named_before_the_first_answer(tmp_path: Path) -> None:
    words = (
        r"method 'norm-hidden-large' with budget 'keep_count 2': the logits at answer token 1 of sample 's0' hold NaN"
    )
    with pytest.raises(UnsupportedFeatureError, match=words):
        run_experiment(config(str(tmp_path / "out"), model=Broken(pruned=True), **FEW))
    assert not (tmp_path / "out").exists()


def test_a_method_that_breaks_on_many_later_samples_is_named(tmp_path: Path) -> None:
    """The first such sample is left out of all series; the second of 24 is one too many."""
    words = (
        r"method 'norm-hidden-large' .*: the logits at answer token 1 of sample 's9' hold NaN.*; methods fail on 2 of"
        " 10 samples that the unpruned model answers, and at most one in 20 is left out for that: remove the method"
    )
    with pytest.raises(UnsupportedFeatureError, match=words):
        run_experiment(config(str(tmp_path), model=Broken(pruned=True, letter="f"), **FEW))


def test_samples_that_the_unpruned_model_cannot_answer_are_left_out(tmp_path: Path) -> None:
    """Like those that its processor refuses: no method is compared on them."""
    whole = {"model": Broken(letter="f"), **FEW}
    result = run_experiment(config(str(tmp_path), **whole))
    assert sorted(result.skipped) == [4, 9, 14, 19]  # every fifth question has six letters
    assert "the unpruned model: the logits at answer token 1 of sample 's4' hold NaN" in result.skipped[4]
    assert {row["position"] for row in result.rows} == set(range(24)) - set(result.skipped)
    before = (tmp_path / "samples.jsonl").read_bytes()
    assert run_experiment(config(str(tmp_path), **whole)).skipped == result.skipped
    assert (tmp_path / "samples.jsonl").read_bytes() == before


def test_the_first_sample_may_be_one_of_them(tmp_path: Path) -> None:
    class Backwards(ToyTask):
        def samples(self) -> Any:
            return super().samples()[4:]

    result = run_experiment(config(str(tmp_path), model=Broken(letter="f"), task=Backwards(), **FEW))
    assert sorted(result.skipped) == [0, 5, 10, 15]


def test_strict_makes_it_an_error(tmp_path: Path) -> None:
    with pytest.raises(SampleError, match="the unpruned model: the logits at answer token 1 of sample 's4' hold NaN"):
        run_experiment(config(str(tmp_path), model=Broken(letter="f"), strict=True, **FEW))
    assert not list(Results(tmp_path).rows())


# ---- elsewhere ----


def tune(folder: Path, **changes: Any) -> TuneConfig:
    plain = {"model": ToyModel(), "task": ToyTask(), "methods": ("norm-hidden-large",), "budget": AVERAGE, "samples": 6}
    return TuneConfig.from_dict({**plain, "batch_size": 3, "output": str(folder), **changes})


def test_a_tune_leaves_out_samples_that_the_unpruned_model_cannot_answer(tmp_path: Path) -> None:
    found = run_tune(tune(tmp_path, model=Broken(letter="d")))
    assert found.skipped
    for name, why in found.skipped.items():
        assert why.startswith(f"the unpruned model on sample {name!r}: the logits behind the prompt of sample {name!r}")
    with pytest.raises(SampleError, match=r"the unpruned model on sample 's[0-9]+': the logits behind the prompt"):
        run_tune(tune(tmp_path / "strict", model=Broken(letter="d"), strict=True))


def test_a_tune_in_python_names_the_sample() -> None:
    model, samples = ToyModel().load(), ToyTask().samples()[:4:2]
    break_prompts(model, letter("d"))
    with pytest.raises(UnsupportedFeatureError, match="distribution holds NaN on sample 1, so nothing"):
        tp.tune(model.model, [model.encode(samples)], AVERAGE, ["norm-hidden-large"])


def test_a_tune_refuses_a_method_that_breaks_the_model(tmp_path: Path) -> None:
    """One that is broken by all candidates has none to offer."""
    for labels in (False, True):
        with pytest.raises(tp.errors.ConfigError, match=r"no candidate can run; the first.* holds? NaN.* sample 's"):
            run_tune(tune(tmp_path / str(labels), model=Broken(pruned=True), labels=labels))


def test_a_look_names_the_method(tmp_path: Path) -> None:
    picture = tmp_path / "a.png"
    ToyTask().samples()[0].images[0].save(picture)
    methods = {"mine": tp.load_method("norm-hidden-large", keep_tokens=2)}
    for pruned, name in ((False, "unpruned"), (True, "mine")):
        sample = read_sample([str(picture)], "abc", None, 1)
        loaded = Broken(pruned=pruned).load()
        with pytest.raises(UnsupportedFeatureError, match=f"method '{name}': the logits at answer token 1 of sample"):
            looks(loaded, methods, sample, 2)


def test_fidelity_over_several_tokens() -> None:
    loaded, samples = ToyModel().load(), ToyTask().samples()[:4]
    break_prompts(loaded, letter("d"))
    with pytest.raises(UnsupportedFeatureError, match="holds NaN on sample 2, so nothing can be compared"):
        UnprunedBatch(adapter_for(loaded.model), loaded.encode(samples), tokens=3)


def test_divergence_of_an_experiment(tmp_path: Path) -> None:
    """The answer is the unpruned model's: the method's own logits may be broken on it alone."""

    class OnlyForced(ToyModel):
        def load(self) -> LoadedModel:
            loaded = super().load()
            model: Any = loaded.model
            rows: list[int] = []

            def see(module: Any, args: Any, output: torch.Tensor) -> None:
                rows.append(output.shape[1])

            def spoil(module: Any, args: Any, kwargs: Any, output: Any) -> None:
                last = [n for n in rows if n > 1]
                if kwargs["input_ids"].shape[1] == 1 and last[-1] < 17 and forced(model):
                    output.logits[:] = math.nan

            model.model.language_model.norm.register_forward_hook(see)
            model.register_forward_hook(spoil, with_kwargs=True)
            return loaded

    def forced(model: Any) -> bool:
        return any(frame.function == "forced_log_probabilities" for frame in inspect.stack())

    with pytest.raises(UnsupportedFeatureError, match=r"distribution holds NaN.* on sample 's0'"):
        run_experiment(config(str(tmp_path), model=OnlyForced(), divergence=True, **FEW))


def test_layer_selectors_that_compare_logits() -> None:
    loaded = ToyModel().load()
    inputs = loaded.encode(ToyTask().samples()[:3])
    method = tp.load_method("norm-hidden-large")
    break_prompts(loaded, letter("d"))
    with pytest.raises(UnsupportedFeatureError, match=r"logits of calibration sample 2 hold NaN \(unpruned\)"):
        last_logits(adapter_for(loaded.model), method, [inputs], None)


def test_tokens_that_are_ruled_out_do_not_hide_the_layer_of_vtw() -> None:
    logits = torch.tensor([[1.0, 2.0, -math.inf]])
    assert divergence(logits, logits) == 0
    assert math.isnan(divergence(torch.tensor([[1.0, math.nan, 0.0]]), torch.zeros(1, 3)))


@pytest.mark.parametrize("broken", ["unpruned", "pruned"])
def test_a_mean_divergence_does_not_hide_nan(broken: str) -> None:
    mask = torch.ones(1, 1, dtype=torch.bool)
    sides = {"unpruned": torch.full((1, 1, 2), math.log(0.5)), "pruned": torch.full((1, 1, 2), math.log(0.5))}
    assert mean_divergence(**sides, mask=mask).tolist() == [0.0]
    sides[broken] = torch.tensor([[[math.nan, math.log(0.5)]]])
    assert mean_divergence(**sides, mask=mask).isnan().all()
