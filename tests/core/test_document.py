"""YAML files and their lines: what is wrong is named with its line, from wherever it is read."""

from __future__ import annotations

from pathlib import Path

import pytest

import tokenprune as tp
from tests.support.toy_distribution import toy_installed
from tokenprune.core.document import parse_yaml, read_yaml
from tokenprune.errors import ConfigError, MissingDataError
from tokenprune.methods.named import find_shipped

__all__ = ["toy_installed"]

EXPERIMENT = """\
# a comment
model: {name: toy}
task:
  name: toy
  split: test
methods:
  - random
  - name: fastv
    seeds: [0]
    pruner:
      name: topk
      scorer:
        name: random
        seed: 3
budgets:
  - name: keep_ratio
    ratio: 0.5
output: results
"""


@pytest.mark.usefixtures("toy_installed")
@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("budgets:", "budget:", "line 15: budget: unknown key, did you mean 'budgets'?"),
        ("  split:", "  splitt:", "line 5: task.splitt: unknown key, did you mean 'split'?"),
        ("    seeds:", "    seed:", "line 9: methods[1].seed: unknown key, did you mean 'seeds'?"),
        ("        seed:", "        sed:", "line 14: methods[1].pruner.scorer.sed: unknown key, did you mean 'seed'?"),
        (
            "    ratio:",
            "    tokens:",
            "line 16: budgets[0].ratio: Field required; line 17: budgets[0].tokens: unknown key; use ratio",
        ),
        ("ratio: 0.5", "ratio: 2", "line 17: budgets[0].ratio: Input should be less than or equal to 1, got 2"),
        ("name: random\n", "name: randon\n", "line 13: methods[1].pruner.scorer: unknown scorer 'randon'; did you"),
        ("- random", "- randon", "line 7: methods[0]: unknown method 'randon'; did you mean 'random'"),
        ("{name: toy}", "{name: toi}", "line 2: model: unknown model 'toi'; did you mean 'toy'"),
        ("output: results", "output: [1]", "line 18: output: Input should be a valid string, got [1]"),
        (
            "    seeds: [0]",
            "    published: 3",
            "line 9: methods[1].published: Input should be a valid boolean or a valid",
        ),
        ("output: results", "Output: results", "line 18: Output: unknown key, did you mean 'output'?"),
        ("output: results", "batch-size: 2", "line 18: batch-size: unknown key, did you mean 'batch_size'?"),
    ],
)
def test_a_wrong_line_of_an_experiment(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = tmp_path / "x.yaml"
    assert old in EXPERIMENT
    path.write_text(EXPERIMENT.replace(old, new))
    with pytest.raises(ConfigError) as caught:
        tp.ExperimentConfig.from_yaml(path)
    assert f"{path}: {message}" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("toy_installed")
def test_a_misspelled_key_is_one_problem_and_problems_stand_in_the_order_of_lines(tmp_path: Path) -> None:
    """What is missing because its key is misspelled is not reported, too."""
    path = tmp_path / "x.yaml"
    path.write_text(EXPERIMENT.replace("budgets", "budget"))
    with pytest.raises(ConfigError) as caught:
        tp.ExperimentConfig.from_yaml(path)
    assert str(caught.value) == f"{path}: line 15: budget: unknown key, did you mean 'budgets'?"
    path.write_text(EXPERIMENT.replace("budgets", "budget").replace("splitt", "split").replace("test", "2"))
    with pytest.raises(ConfigError, match=r"line 5: task.split.*; line 15: budget: ") as caught:
        tp.ExperimentConfig.from_yaml(path)


@pytest.mark.parametrize(
    ("text", "arguments", "message"),
    [
        ("layers: {name: fixed, layers: [2]}\npruner:\n  name: tpk\nbudget: adaptive", {}, "line 3: pruner: unknown"),
        ("layers: {name: fixed}\npruner: tome\nbudget: adaptive", {}, "line 1: layers.layers: Field required"),
        ("paper: x\nmethod:\n  layers: fixed\n  budgett: 3", {}, "line 3: layers.layers: Field required; line 4: budg"),
        ("paper: x\nmetod:\n  layers: fixed", {}, "line 2: metod: unknown key, did you mean 'method'?"),
        ("description: [1]\nmethod: {}", {}, "line 1: description: Input should be a valid string, got [1]"),
        ("method: 3", {}, "line 1: method: Input should be a mapping, got 3"),
    ],
)
def test_a_wrong_line_of_a_method(tmp_path: Path, text: str, arguments: dict[str, int], message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        tp.load_method(path, **arguments)
    assert f"{path}: {message}" in str(caught.value)


def test_what_an_argument_replaces_has_no_line(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("layers: {name: fixed, layers: [2]}\npruner: tome\nbudget: {name: keep_ratio, ratio: 0.5}")
    with pytest.raises(ConfigError) as caught:
        tp.load_method(path, keep_ratio=7)
    assert str(caught.value).startswith(f"{path}: budget.ratio: Input should be less than or equal to 1, got 7")
    assert find_shipped(path).method().budget == tp.load_method(path, keep_ratio=0.5).budget


def test_lines_of_values() -> None:
    document = parse_yaml("a:\n  - b: 1\n    c: 2\n  - d\n<<: &m {e: 1,\n  f: 2}\ng: *m\n", "x")
    assert document.data == {"a": [{"b": 1, "c": 2}, "d"], "e": 1, "f": 2, "g": {"e": 1, "f": 2}}
    paths = {
        ("a",): 1,
        ("a", 0): 2,
        ("a", 0, "c"): 3,
        ("a", 1): 4,
        ("e",): 5,
        ("f",): 6,
        ("g",): 7,
        ("a", 0, "none"): 2,
    }
    assert {path: document.line(path) for path in paths} == paths
    assert document.line(("none",)) is None
    assert document.over({"a": 3}).line(("a", 0)) is None
    assert document.over({"a": 3}).line(("g",)) == 7
    assert document.part("a", 0).line(("c",)) == 3
    assert document.part("a", 0).data == {"b": 1, "c": 2}


def test_a_dictionary_has_no_lines() -> None:
    with pytest.raises(ConfigError) as caught:
        tp.Method.from_dict({**tp.load_method("fastv").model_dump(), "colour": 1})
    names = "layers, pruner, budget, positions, cut_earlier_caches, label or tuned_for"
    assert str(caught.value) == f"Method: colour: unknown key; use {names}"


def test_merged_keys_are_no_repetition(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("x: {y: &b {<<: &a {k: 1}, k: 2}}\nc: {<<: *b, k: 3}\n")
    assert read_yaml(path).data == {"x": {"y": {"k": 2}}, "c": {"k": 3}}


def test_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(MissingDataError, match="is a folder, not a config file"):
        read_yaml(tmp_path)
    with pytest.raises(MissingDataError, match="null byte"):
        read_yaml(tmp_path / "a\0b")


def test_a_key_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("layers: fixed\nyes: 3\n7: 3\n")
    with pytest.raises(
        ConfigError, match=r"line 3: \[7\]: the key 7 is no text: .*: the key True is no text: write it"
    ):
        tp.Method.from_yaml(path)
