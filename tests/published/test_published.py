"""Ours gives what the authors' published code gave, case by case."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest
import torch

from tests.published.source import FOLDER, Case, Result, published, transcripts

RECORDED = transcripts()
PAIRS = [
    pytest.param(method, entry["case"], entry["result"], id=f"{method}-{number}")
    for method, transcript in RECORDED.items()
    for number, entry in enumerate(transcript["cases"])
]
RELATIVE = 1e-4
"""Tolerance of merged values, as a share of the largest: six digits were recorded, and sums run in another order."""


def same(one: Any, other: Any) -> bool:
    """Equal indices, and values within the tolerance."""
    if not (isinstance(one, list) and isinstance(other, list)):
        return bool(one == other)
    if any(isinstance(value, float) for value in [*one, *other]):
        allowed = RELATIVE * max(map(abs, other), default=0.0)
        return len(one) == len(other) and all(abs(a - b) <= allowed for a, b in zip(one, other, strict=True))
    return len(one) == len(other) and all(map(same, one, other))


@pytest.mark.each("method")
@pytest.mark.parametrize(("method", "case", "recorded"), PAIRS)
def test_ours_equals_the_authors(method: str, case: Case, recorded: Result) -> None:
    """A case with the key `differs` documents a difference, which this test therefore expects."""
    with torch.no_grad():
        result = published(method).ours(case)
    assert result.keys() == recorded.keys()
    assert all(same(result[name], recorded[name]) for name in recorded) == ("differs" not in case)


@pytest.mark.parametrize("method", RECORDED)
def test_a_transcript_belongs_to_its_module(method: str) -> None:
    """Whoever changes cases or the source records again."""
    module, transcript = published(method), RECORDED[method]
    assert [entry["case"] for entry in transcript["cases"]] == module.CASES
    assert {name: transcript[name] for name in asdict(module.SOURCE)} == asdict(module.SOURCE)
    assert len(module.SOURCE.commit) == 40


@pytest.mark.parametrize("method", RECORDED)
def test_a_transcript_says_something(method: str) -> None:
    """Several agreeing cases, results that are not all the same, and a small file."""
    agreeing = [entry["result"] for entry in RECORDED[method]["cases"] if "differs" not in entry["case"]]
    assert len(agreeing) >= 4
    assert any(result != agreeing[0] for result in agreeing)
    assert (FOLDER / f"{method}.json").stat().st_size < 100_000


@pytest.mark.parametrize(("one", "other"), [([1, 2], [1, 3]), ([1, 2], [1]), ([1.0], [1.001]), ([[0.5]], [[0.6]])])
def test_differences_are_noticed(one: list[Any], other: list[Any]) -> None:
    assert not same(one, other)
    assert same(one, one)
