"""Named methods, configs and registries: the errors that users see, and round trips."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import tokenprune as tp
from tokenprune.budgets.base import Budget
from tokenprune.budgets.flops_reduction import FlopsReduction
from tokenprune.budgets.keep import KeepCount, KeepRatio
from tokenprune.budgets.layer_average import LayerAverage
from tokenprune.core.registry import Entry, Registry
from tokenprune.errors import ConfigError, MissingDataError, PluginError, UnknownNameError
from tokenprune.methods import named
from tokenprune.scorers.matrix_entropy import MatrixEntropy
from tokenprune.scorers.random import Random
from tokenprune.selectors.entropy_collapse import EntropyCollapse

PLAIN = {
    "layers": {"name": "fixed", "layers": [2]},
    "pruner": {"name": "topk", "scorer": {"name": "random", "seed": 3}},
    "budget": {"name": "keep_ratio", "ratio": 0.5},
}


def test_every_named_method_loads_and_reads_back() -> None:
    builtin = {method.name: method for method in tp.list_methods() if method.distribution == "tokenprune-mllm"}
    assert {
        "entropyprune",
        "entropyprune-paper",
        "entropyprune-reference",
        "fastv",
        "random",
        "oracle",
        "norm-key-small",
    } <= set(builtin)
    for name, shipped in builtin.items():
        assert shipped.description.endswith(".")
        method = tp.load_method(name)
        assert tp.Method.from_dict(method.model_dump(mode="json")) == method


def test_the_list_is_a_table_in_a_notebook() -> None:
    methods: Any = tp.list_methods()
    assert isinstance(methods, list)
    html = methods._repr_html_()
    assert html.count("<tr>") == len(methods) + 1
    assert '<td style="text-align: left">fastv</td>' in html


def test_names_are_listed_without_reading_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """An experiment checks the name of every one of its methods."""
    expected = sorted({method.name for method in tp.list_methods()})
    monkeypatch.setattr(named, "_read", None)
    assert named.method_names() == expected


def test_entropyprune_is_the_papers_with_verification() -> None:
    ours, paper = tp.load_method("entropyprune"), tp.load_method("entropyprune-paper")
    assert isinstance(ours.layers, EntropyCollapse)
    decoder = ours.layers.model_copy(update={"before": (), "two_stages": False})
    assert decoder == EntropyCollapse(verify=True, fields=("scorer.source",), fallback=2)
    assert ours.layers.before[0].pruner == tp.load_method("entropyprune-tower").pruner
    assert paper.layers == EntropyCollapse(fallback=2)
    assert (ours.pruner, ours.budget, ours.positions) == (paper.pruner, paper.budget, paper.positions)


def test_paper_and_code_differ_in_their_normalisation_only() -> None:
    paper, code = tp.load_method("entropyprune-paper"), tp.load_method("entropyprune-reference")
    assert paper.layers == code.layers
    assert paper.budget == code.budget
    assert paper.pruner.scorer == MatrixEntropy(source="query", normalization="trace")  # type: ignore[attr-defined]
    assert code.pruner.scorer == MatrixEntropy(source="query", normalization="none")  # type: ignore[attr-defined]


def test_a_budget_is_named_by_its_keyword_or_by_its_name() -> None:
    fastv = {method.name: method for method in tp.list_methods()}["fastv"]
    for made in (tp.load_method, lambda name, *budget, **fields: fastv.method(*budget, **fields)):
        assert made("fastv", average_tokens=64).budget == LayerAverage(tokens=64)
        assert made("fastv", average_ratio=0.25).budget == LayerAverage(ratio=0.25)
        assert made("fastv", keep_tokens=64).budget == KeepCount(tokens=64)
        assert made("fastv", keep_ratio=0.25).budget == KeepRatio(ratio=0.25)
        assert made("fastv", flops_reduction=60).budget == FlopsReduction(percent=60)
        assert made("fastv", budget="layer_average", tokens=128).budget == LayerAverage(tokens=128)
        assert made("fastv", "keep_ratio", ratio=0.5).budget == KeepRatio(ratio=0.5)
        assert made("fastv").budget == LayerAverage(ratio=0.2222)


@pytest.mark.parametrize(
    ("name", "fields", "error", "message"),
    [
        ("entropyprun", {}, UnknownNameError, "unknown method 'entropyprun'; did you mean 'entropyprune'"),
        ("fastv", {"keep_tokens": -3}, ConfigError, "greater than or equal to 1, got -3"),
        ("fastv", {"average_ratio": 25}, ConfigError, r"budget.ratio: .*less than or equal to 1, got 25"),
        (
            "fastv",
            {"ratio": 0.25},
            ConfigError,
            r"^method 'fastv': ratio=0.25 does not say what it counts; write average_ratio=0.25 \(.*averaged over all"
            r" layers\) or keep_ratio=0.25 \(.*kept after the last stage\)$",
        ),
        ("fastv", {"tokens": 64}, ConfigError, r"write average_tokens=64 \(.*\) or keep_tokens=64 \("),
        ("fastv", {"percent": 60}, ConfigError, "write flops_reduction=60 "),
        ("fastv", {"token": 3}, ConfigError, r"write average_tokens=3 \(.*\) or keep_tokens=3 \("),
        ("fastv", {"model": "LLaVA-1.5-13B", "ratio": 0.5}, ConfigError, "write average_ratio=0.5 "),
        (
            "fastv",
            {"colour": 3},
            ConfigError,
            "colour=3 is the field of no budget; give one of average_tokens, average_r",
        ),
        (
            "fastv",
            {"budget": "keep_ratio", "average_ratio": 0.2},
            ConfigError,
            "average_ratio states a budget by itself",
        ),
        (
            "fastv",
            {"flops_reduction": 60, "scope": "decoder"},
            ConfigError,
            'scope stands beside it; .*"flops_reduction"',
        ),
        ("fastv", {"keep_ratio": 0.2, "keep_tokens": 3}, ConfigError, "keep_tokens stands beside it"),
        ("fastv", {"prefill_time": 0.5}, ConfigError, "prefill_time is measured.*use tp.tune"),
    ],
)
def test_wrong_names_and_fields(name: str, fields: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        tp.load_method(name, **fields)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("pruner", "scorer", "name"), "randon", r"pruner.scorer: unknown scorer 'randon'; did you mean 'random'"),
        (("pruner", "scorer", "sed"), 1, r"pruner.scorer.sed: unknown key"),
        (("pruner", "scorer", "seed"), "x", r"pruner.scorer.seed: .*integer.*got 'x'"),
        (("budget", "ratio"), 2, r"budget.ratio: .*less than or equal to 1, got 2"),
        (("layers", "layers"), [3, 1], r"layers.layers: layers must be ascending and >= 0, got \[3, 1\]"),
        (("pruner",), 7, r"pruner: expected a pruner's name or a mapping with 'name', got 7"),
        (("colour",), "red", r"colour: unknown key"),
    ],
)
def test_errors_name_the_path(path: tuple[str, ...], value: object, message: str) -> None:
    data: dict[str, object] = {k: dict(v) for k, v in PLAIN.items()}
    data["pruner"] = {"name": "topk", "scorer": {"name": "random", "seed": 3}}
    inner: dict[str, object] = data
    for key in path[:-1]:
        inner = inner[key]  # type: ignore[assignment]
    inner[path[-1]] = value
    with pytest.raises(ConfigError, match=message) as caught:
        tp.Method.from_dict(data)
    assert "\n" not in str(caught.value)


def test_yaml_round_trip(tmp_path: Path) -> None:
    method = tp.Method.from_dict(PLAIN)
    (tmp_path / "m.yaml").write_text(method.to_yaml())
    assert tp.Method.from_yaml(tmp_path / "m.yaml") == method
    with pytest.raises(MissingDataError, match="no such config file"):
        tp.Method.from_yaml(tmp_path / "none.yaml")


def test_methods_are_frozen() -> None:
    method = tp.Method.from_dict(PLAIN)
    with pytest.raises(ValueError, match="frozen"):
        method.budget = KeepCount(tokens=1)  # type: ignore[misc]


def entry(name: str, load: object, owner: str) -> Entry:
    return Entry(
        name, f"{owner}:Thing", owner, lambda: load() if callable(load) and not isinstance(load, type) else load
    )


def test_registries_are_lazy_and_loud() -> None:
    def broken() -> None:
        raise ImportError("no module named torchvision")

    registry = Registry(
        "budget",
        Budget,
        [
            entry("good", KeepCount, "ours"),
            entry("broken", broken, "theirs"),
            entry("wrong", Random, "theirs"),
            entry("twice", KeepCount, "ours"),
            entry("twice", KeepRatio, "theirs"),
        ],
    )
    assert registry.get("good") is KeepCount
    assert registry.names() == ["broken", "good", "twice", "wrong"]
    with pytest.raises(
        PluginError, match=r"'broken' of theirs cannot be imported .*torchvision.*repair or uninstall theirs"
    ):
        registry.get("broken")
    with pytest.raises(PluginError, match=r"'wrong' of theirs .* is not a Budget"):
        registry.get("wrong")
    with pytest.raises(PluginError, match=r"registered twice, by ours \(ours:Thing\) and theirs \(theirs:Thing\)"):
        registry.get("twice")
    with pytest.raises(UnknownNameError, match="unknown budget 'god'; did you mean 'good'"):
        registry.get("god")
    assert registry.get("good") is KeepCount


def test_a_name_of_another_type_is_our_error() -> None:
    for name in (None, 5, ["fastv"]):
        with pytest.raises(tp.errors.ConfigError, match="a method's name is a text"):
            tp.load_method(name)  # type: ignore[arg-type]


def test_a_path_is_a_methods_file(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text(tp.load_method("fastv").to_yaml())
    assert tp.load_method(tmp_path / "mine.txt") == tp.load_method("fastv")
