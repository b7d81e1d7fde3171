"""A method that was tuned for one model is refused on a model of another architecture, wherever it is used."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import tokenprune as tp
from tests.support.tiny import CASES
from tests.support.toy import ToyModel, ToyTask
from tests.support.toy import config as experiment
from tests.tuning.models import llava
from tests.tuning.planted import BUDGET, config, planted
from tokenprune.adapters import adapter_for
from tokenprune.budgets.layer_average import LayerAverage
from tokenprune.cli.looking import look_methods, looks, read_sample
from tokenprune.core.architecture import Architecture
from tokenprune.errors import ConfigError
from tokenprune.experiment import run_experiment
from tokenprune.measure.estimate import estimate
from tokenprune.tuning import run_tune
from tokenprune.tuning.candidates import default_candidates
from tokenprune.tuning.folder import read_tune


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The method that a tune found for the toy model."""
    folder = tmp_path_factory.mktemp("tune")
    run_tune(config(str(folder), methods=["visionzip"], samples=4, first=2))
    return folder / "tuned.yaml"


def test_the_file_says_for_what_it_was_tuned(tuned: Path) -> None:
    toy: Any = ToyModel().load().model
    text = toy.config.get_text_config()
    stated = yaml.safe_load(tuned.read_text())["method"]["tuned_for"]
    assert stated == dataclasses.asdict(Architecture.of(toy))
    assert (stated["family"], stated["depth"]) == ("llava", text.num_hidden_layers)
    assert (stated["decoder"], stated["hidden_size"]) == (text.model_type, text.hidden_size)
    assert tp.load_method(tuned).tuned_for == Architecture.of(toy)
    assert read_tune(tuned.parent).method.tuned_for == Architecture.of(toy)


@pytest.mark.parametrize("make", [CASES["qwen2_vl"].build, lambda: llava(layers=8)], ids=["family", "depth"])
def test_another_architecture_is_refused(tuned: Path, make: Callable[[], Any]) -> None:
    model = make()
    words = rf"was tuned for a 'llava' with \d+ layers of .* and the model is a '{model.config.model_type}' with"
    with pytest.raises(ConfigError, match=words), tp.apply(model, tp.load_method(tuned)):
        pytest.fail("it applies")
    adapter = adapter_for(model)
    _, refused = default_candidates(adapter, LayerAverage(ratio=0.5), methods=[str(tuned)], visual=16)
    assert "was tuned for" in refused["tuned"]


def test_a_result_in_memory_is_refused_too() -> None:
    model, samples = planted(4)
    result = tp.tune(model, samples, BUDGET, ["visionzip"], first=2)
    other: Any = llava(layers=8)
    for row in result.ranked:
        with pytest.raises(ConfigError, match="was tuned for"), tp.apply(other, row.method):
            pytest.fail("it applies")
    with tp.apply(model, result.method):
        model(**samples[0])


def test_other_weights_of_the_same_architecture_are_taken(tuned: Path) -> None:
    loaded = ToyModel().load()
    inputs = loaded.encode(ToyTask().samples()[:2])
    with torch.no_grad():
        for weight in loaded.model.parameters():
            weight.mul_(1.01)
    with tp.apply(loaded.model, tp.load_method(tuned)) as run:
        loaded.model(**inputs)
    assert max(run.report.after) < 16


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Architecture)])
def test_every_part_of_the_architecture_counts(tuned: Path, field: str) -> None:
    toy = ToyModel().load().model
    method = tp.load_method(tuned)
    assert method.tuned_for is not None
    value: Any = "other" if field in ("family", "decoder") else 1000
    other = method.model_copy(update={"tuned_for": dataclasses.replace(method.tuned_for, **{field: value})})
    with pytest.raises(ConfigError, match=r"was tuned for .*(1000|'other')"), tp.apply(toy, other):
        pytest.fail("it applies")


# ---- on every way to a model ----


@pytest.fixture
def foreign(tuned: Path, tmp_path: Path) -> Path:
    """The same file, tuned for a deeper model."""
    data = yaml.safe_load(tuned.read_text())
    data["method"]["tuned_for"]["depth"] = 28
    data["method"]["label"] = "foreign"  # the best one may have been random, which every tune has
    path = tmp_path / "foreign.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


def test_in_an_experiment(foreign: Path, tuned: Path, tmp_path: Path) -> None:
    few = {"oracle": False, "examples": 0, "budgets": [BUDGET]}
    with pytest.raises(ConfigError, match="tuned for a 'llava' with 28 layers"):
        run_experiment(experiment(str(tmp_path / "a"), methods=[str(foreign)], **few))
    assert not (tmp_path / "a").exists()
    result = run_experiment(experiment(str(tmp_path / "b"), methods=[str(tuned)], **few))
    assert len(result.rows) == 48


@pytest.mark.slow
def test_as_a_candidate_of_a_tune(foreign: Path, tmp_path: Path) -> None:
    result = run_tune(config(str(tmp_path / "a"), methods=["fastv", str(foreign)], samples=4, first=2))
    assert any("tuned for a 'llava' with 28 layers" in why for why in result.rankings[0].refused.values())
    model, samples = planted(4)
    result = tp.tune(model, samples, BUDGET, ["fastv", tp.load_method(foreign)], first=2)
    assert any("tuned for a 'llava' with 28 layers" in why for why in result.refused.values())


def test_in_a_look(foreign: Path, tmp_path: Path) -> None:
    picture = tmp_path / "a.png"
    ToyTask().samples()[0].images[0].save(picture)
    with pytest.raises(ConfigError, match="tuned for a 'llava' with 28 layers"):
        looks(ToyModel().load(), look_methods([str(foreign)], {}), read_sample([str(picture)], "a", None, 1), 1)


def test_in_an_estimate(tuned: Path) -> None:
    with pytest.raises(ConfigError, match=r"was tuned for a 'llava' .* and the model is a 'qwen2_5_vl'"):
        estimate("qwen2.5-vl-7b", tp.load_method(tuned), 60)


def test_a_file_with_an_unknown_key_is_refused(tuned: Path) -> None:
    data = yaml.safe_load(tuned.read_text())["method"]
    data["tuned_for"]["layers"] = 3
    with pytest.raises(ConfigError, match=r"tuned_for.*layers"):
        tp.Method.from_dict(data)


def test_a_method_of_no_tune_is_written_as_before() -> None:
    method = tp.load_method("fastv")
    assert "tuned_for" not in method.model_dump(mode="json")
    assert "tuned_for" not in method.to_yaml()
    assert tp.Method.from_dict(method.model_dump(mode="json")) == method
