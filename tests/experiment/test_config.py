"""What an experiment's file must not say: things that would run in silence and spoil the tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

import tokenprune as tp
from tests.experiment.test_cli import GOOD
from tokenprune.errors import ConfigError

pytestmark = pytest.mark.usefixtures("toy_installed")

HALF = {"name": "keep_ratio", "ratio": 0.5}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"methods": [{"name": "random", "label": "unpruned"}]},
            r"methods\[0\].label: the label of the unpruned",
        ),
        ({"methods": [{"name": "random", "label": ""}]}, r"methods\[0\].label: a label needs"),
        ({"methods": [{"name": "random", "label": " "}]}, r"methods\[0\].label: a label needs"),
        ({"methods": [{"name": "random", "label": "a\nb"}]}, r"methods\[0\].label: a label is one line"),
        ({"methods": [{"name": "random", "label": "a|b"}]}, r"methods\[0\].label: a label is one line"),
        ({"methods": ["random", "random"]}, "methods random appear twice"),
        ({"methods": [{"name": "random", "seeds": []}]}, r"methods\[0\].seeds: List should have at least 1 item"),
        ({"methods": [{"name": "random", "seeds": [1, 1]}]}, r"methods\[0\].seeds: every seed runs once"),
        ({"budgets": [HALF, HALF]}, "budgets: the budget 'keep_ratio 0.5' stands twice"),
        ({"budgets": [HALF, {**HALF, "ratio": 0.50000001}]}, "budgets: the budget 'keep_ratio 0.5' stands twice"),
        ({"budgets": [{"name": "keep_ratio", "ratio": True}]}, r"budgets\[0\].ratio: Input should be a valid number"),
        ({"budgets": []}, "budgets: List should have at least 1 item"),
        ({"methods": [None]}, r"methods\[0\]: Input should be a mapping, got None"),
        ({"methods": [{"name": "fastv", "layers": {"name": "fixed", "layers": [3, 1]}}]}, r"got \[3, 1\]$"),
        ({"requires": ["x"]}, r"requires: Input should be a mapping, got \['x'\]"),
        ({"output": ""}, "output: "),
        ({"output": " "}, "output: name a folder"),
        ({"output": "a\0b"}, "output: the text holds a NUL"),
        ({"oracle": 1}, "oracle: Input should be a valid boolean, got 1"),
        ({"timing": True}, "timing: Input should be a valid integer, got True"),
    ],
)
def test_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        tp.ExperimentConfig.from_dict(GOOD | changes)
    assert "\n" not in str(caught.value)


def test_an_adaptive_budget_for_a_pruner_that_counts_is_our_error() -> None:
    config = tp.ExperimentConfig.from_dict(GOOD | {"budgets": ["adaptive"]})
    with pytest.raises(ConfigError, match=r"method 'random': .*leaves the count to the pruner"):
        list(config.series())


def test_the_yaml_of_a_config_reads_back(tmp_path: Path) -> None:
    config = tp.ExperimentConfig.from_dict(GOOD | {"methods": ["fastv", {"name": "random", "seeds": [0, 1]}]})
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    assert tp.ExperimentConfig.from_yaml(tmp_path / "config.yaml") == config
    assert "seeds" not in yaml.safe_load(config.to_yaml())["methods"][0]
