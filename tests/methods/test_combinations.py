"""The combinations under examples/ say what they claim, and run on a tiny model."""

from __future__ import annotations

from pathlib import Path

import pytest

import tokenprune as tp
from tests.support.literal import record
from tokenprune.pruners.max_min import MaxMin
from tokenprune.pruners.topk import TopK
from tokenprune.scorers.matrix_entropy import MatrixEntropy

EXAMPLES = Path(__file__).parents[2] / "examples"


def methods(name: str) -> dict[str, list[tp.Method]]:
    """Every method of an example by its name in tables, once per budget."""
    methods_by_label: dict[str, list[tp.Method]] = {}
    for series in tp.ExperimentConfig.from_yaml(EXAMPLES / f"{name}.yaml").series():
        if series.method is not None:
            methods_by_label.setdefault(series.method.label or "", []).append(series.method)
    return methods_by_label


def test_entropy_at_pyramid_layers() -> None:
    methods_by_label = methods("combine-entropy-pyramid")
    assert set(methods_by_label) == {"entropy-pyramid", "fastv-pyramid", "random-pyramid", "oracle"}
    (made,) = methods_by_label["entropy-pyramid"]
    assert made.pruner == TopK(scorer=MatrixEntropy())
    assert {entries[0].layers for entries in methods_by_label.values()} == {made.layers}


def test_diverse_choice_among_the_best_by_entropy() -> None:
    methods_by_label = methods("combine-diverse-entropy")
    assert set(methods_by_label) == {"diverse-entropy", "entropyprune", "divprune-layer-2", "random", "oracle"}
    pruner = methods_by_label["diverse-entropy"][0].pruner
    assert pruner == MaxMin(pool=MatrixEntropy(), pool_factor=2)
    assert {str(entries[0].layers) for entries in methods_by_label.values()} == {"layers=(2,)"}


@pytest.mark.parametrize(
    ("name", "label", "after"),
    [
        ("combine-entropy-pyramid", "entropy-pyramid", [8, 4, 2]),
        ("combine-diverse-entropy", "diverse-entropy", [5]),
    ],
)
def test_they_prune(name: str, label: str, after: list[int]) -> None:
    """Of 16 tokens, in a model of four layers."""
    recording = record("llava")
    with tp.apply(recording.model, methods(name)[label][0]) as run:
        recording.model(**recording.inputs)
    assert [stage.after[0] for stage in run.stages] == after
