"""The demo is one story: both halves have the same methods and the same budget, and its end connects them."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

import tokenprune as tp
from tokenprune.tuning import TuneConfig

EXAMPLES = Path(__file__).parents[2] / "examples"


def halves() -> tuple[tp.ExperimentConfig, TuneConfig]:
    return tp.ExperimentConfig.from_yaml(EXAMPLES / "demo.yaml"), TuneConfig.from_yaml(EXAMPLES / "tune-demo.yaml")


def test_both_halves_have_the_same_methods_model_and_budget() -> None:
    run, tune = halves()
    assert tune.methods is not None
    first, second = ({entry.title: entry for entry in half.methods or ()} for half in (run, tune))
    assert first.keys() - {"random"} == second.keys()  # random is in every tune
    for title, entry in second.items():
        assert (entry.layers, entry.pruner) == (first[title].layers, first[title].pruner)
    assert run.budgets == tune.all_budgets
    assert (run.model, type(run.task)) == (tune.model, type(tune.task))


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        ("fastv", "on other pictures, the tune found the same: fastv."),
        ("random-ish", "on other pictures, the tune found random-ish, which scored 40 %."),
    ],
)
def test_the_end_connects_both(tmp_path: Path, chosen: str, words: str) -> None:
    spec = importlib.util.spec_from_file_location("demo", EXAMPLES / "demo.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    rows: list[dict[str, Any]] = [
        {"method": name, "budget": budget, "accuracy": {"mean": mean}}
        for name, budget, mean in (
            ("unpruned", "", 0.95),
            ("oracle", "layer_average 0.25", 0.99),
            ("fastv", "layer_average 0.25", 0.9),
            ("random-ish", "layer_average 0.25", 0.4),
        )
    ]
    (tmp_path / "summary.json").write_text(json.dumps(rows))
    tuned = tmp_path / "tune" / "tuned.yaml"
    tuned.parent.mkdir()
    method = tp.load_method("fastv", average_ratio=0.25).model_copy(update={"label": chosen})
    tuned.write_text(method.to_yaml())
    first, second, use, _ = script.sentences(tmp_path, tuned)
    assert "of 2 methods with 25 % of the visual tokens, averaged over all layers, fastv scored most: 90 %." in first
    assert words in second
    assert f'tp.load_method("{tuned}")' in use
