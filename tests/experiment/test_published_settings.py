"""Published settings in experiments: asked for by the file, chosen by the experiment's model, named in the report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import tokenprune as tp
from tests.experiment.test_cli import GOOD
from tokenprune.budgets.keep import KeepRatio
from tokenprune.cli.tables import print_plan
from tokenprune.errors import ConfigError, MissingDataError
from tokenprune.experiment.dry_run import plan_experiment
from tokenprune.experiment.report import markdown
from tokenprune.models.base import ModelSpec
from tokenprune.models.presets import PRESETS
from tokenprune.pruners.base import Pruner

pytestmark = pytest.mark.usefixtures("toy_installed")

SENTENCE = "The method `fastv` has the settings published for LLaVA-1.5-13B (pkunlp-icler/FastV d165972,"


def experiment(*methods: Any, **changes: Any) -> tp.ExperimentConfig:
    return tp.ExperimentConfig.from_dict({**GOOD, "oracle": False, "timing": 0, "methods": list(methods), **changes})


def method_of(config: tp.ExperimentConfig) -> tp.Method:
    """The method of the only series beside the unpruned model."""
    _, series = config.series()
    assert series.method is not None
    return series.method


@pytest.fixture
def checkpoint(tmp_path: Path) -> str:
    """A folder with the config of LLaVA-1.5-13B and no weights."""
    PRESETS["llava-1.5-13b"].config().save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text("{}")
    return str(tmp_path)


def test_true_takes_the_entry_that_fits_the_experiments_model(checkpoint: str) -> None:
    model = {"name": "hf", "checkpoint": checkpoint}
    method = method_of(experiment({"name": "vtw", "published": True}, model=model, budgets=["drop_all"]))
    assert method == tp.load_method("vtw", model="LLaVA-1.5-13B")
    assert method != tp.load_method("vtw")


def test_a_checkpoint_that_is_not_there_is_named() -> None:
    model = {"name": "hf", "checkpoint": "./no-such-folder"}
    config = experiment({"name": "vtw", "published": True}, model=model, budgets=["drop_all"])
    with pytest.raises(MissingDataError, match=r"method 'vtw': checkpoint './no-such-folder' cannot be loaded"):
        list(config.series())


def test_the_config_is_read_only_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ModelSpec, "read_config", lambda self: pytest.fail("the config was read"))
    assert method_of(experiment("fastv")).layers == tp.load_method("fastv").layers
    assert method_of(experiment({"name": "sparsevlm", "published": "llava-1.5"})).layers.model_dump() == {
        "layers": (3, 7, 16)
    }


def test_the_budget_is_the_experiments() -> None:
    assert method_of(experiment({"name": "fastv", "published": "LLaVA-1.5-13B"})).budget == KeepRatio(ratio=0.5)


def test_layers_and_pruner_of_the_entry_win() -> None:
    layers, pruner = {"name": "fixed", "layers": [1]}, {"name": "topk", "scorer": "random"}
    method = method_of(experiment({"name": "sparsevlm", "published": "LLaVA-1.5", "layers": layers}))
    assert method.layers.model_dump() == {"layers": (1,)}
    assert method.pruner == tp.load_method("sparsevlm").pruner
    method = method_of(experiment({"name": "sparsevlm", "published": "LLaVA-1.5", "pruner": pruner}))
    assert method.layers.model_dump() == {"layers": (3, 7, 16)}
    assert isinstance(method.pruner, Pruner)
    assert method.pruner == tp.load_method("random").pruner


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"name": "random", "published": "LLaVA-1.5"}, "method 'random': method 'random' has no settings that were"),
        ({"name": "vtw", "published": "LLaVA"}, "published for 'LLaVA'; it has some for LLaVA-1.5-7B"),
        ({"name": "vtw", "published": True}, "method 'vtw': the model 'ToyModel' does not show its config before"),
    ],
)
def test_nothing_published_is_an_error_that_names_the_method(entry: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        list(experiment(entry, budgets=["drop_all"]).series())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (
            {
                "label": "x",
                "published": True,
                "layers": {"name": "fixed", "layers": [1]},
                "pruner": {"name": "max_min"},
            },
            r"methods\[0\]: published settings belong to a named method",
        ),
        ({"name": "vtw", "published": 1}, r"methods\[0\].published.*valid boolean"),
        ({"name": "vtw", "published": ""}, r"methods\[0\].published.*at least 1 character"),
    ],
)
def test_a_wrong_key_is_found_when_the_file_is_read(entry: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        experiment(entry)


def test_the_report_and_the_plan_name_the_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = experiment({"name": "fastv", "published": "LLaVA-1.5-13B"}, output=str(tmp_path / "out"))
    plan = plan_experiment(config)
    print_plan(plan)
    assert SENTENCE in capsys.readouterr().out
    assert SENTENCE in markdown(tp.run_experiment(config))
    assert SENTENCE in markdown(tp.run_experiment(config)), "it was lost when the finished experiment was read again"
    own = experiment("fastv", output=str(tmp_path / "own"))
    assert "published" not in markdown(tp.run_experiment(own))


def test_the_configuration_reads_back() -> None:
    config = experiment({"name": "vtw", "published": True}, {"name": "fastv", "published": "LLaVA-1.5-13B"})
    assert tp.ExperimentConfig.from_dict(config.model_dump(mode="json")) == config
