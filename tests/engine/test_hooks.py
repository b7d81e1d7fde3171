"""Methods of a model that are replaced for a while."""

from __future__ import annotations

from collections.abc import Mapping
from inspect import signature
from typing import Any

import pytest

from tokenprune.engine.hooks import PatchedMethod, observe_calls


class Encoder:
    def encode(self, pixels: int, sizes: int = 0, **options: Any) -> tuple[int, int]:
        if sizes < 0:
            raise ValueError(sizes)
        return pixels, sizes


def test_arguments_are_told_by_name_and_end_with_the_call() -> None:
    told: list[Mapping[str, Any]] = []
    encoder = Encoder()
    replaced = observe_calls(encoder, "encode", told.append)
    assert encoder.encode(3, 4) == (3, 4)
    assert encoder.encode(3, sizes=5, dtype="half") == (3, 5)
    with pytest.raises(ValueError, match="-1"):
        encoder.encode(1, -1)
    assert told == [
        {"pixels": 3, "sizes": 4},
        {},
        {"pixels": 3, "sizes": 5, "dtype": "half"},
        {},
        {"pixels": 1, "sizes": -1},
        {},
    ]
    assert list(signature(encoder.encode).parameters) == ["pixels", "sizes", "options"]
    replaced.remove()
    assert not vars(encoder)
    encoder.encode(1, 2)
    assert len(told) == 6


def test_replacements_are_taken_off_one_by_one() -> None:
    encoder = Encoder()
    outer = PatchedMethod(encoder, "encode", lambda own, args, kwargs: ("outer", own(*args)))
    inner = PatchedMethod(encoder, "encode", lambda own, args, kwargs: ("inner", own(*args)))
    assert encoder.encode(1, 2) == ("inner", ("outer", (1, 2)))  # type: ignore[comparison-overlap]
    inner.remove()
    assert encoder.encode(1, 2) == ("outer", (1, 2))  # type: ignore[comparison-overlap]
    outer.remove()
    assert encoder.encode(1, 2) == (1, 2)


def test_what_is_not_there_is_not_put_there() -> None:
    encoder = Encoder()
    PatchedMethod(encoder, "decode", lambda own, args, kwargs: own(*args)).remove()
    assert not vars(encoder)
    assert not hasattr(encoder, "decode")
