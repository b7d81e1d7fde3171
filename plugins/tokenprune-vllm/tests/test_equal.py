"""Pictures are equal to ``tokenprune.apply`` on transformers: ids, and log-probabilities within 1e-5 in float32."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from checkpoints import FAMILIES, shown
from equality import prompts
from every import EqualToApply, Served

Find = Callable[[str], Path]


@pytest.fixture(scope="module", params=list(FAMILIES))
def family(request: pytest.FixtureRequest) -> str:
    """Every family."""
    return str(request.param)


@pytest.fixture(scope="module")
def served(family: str, checkpoint: Find, tmp_path_factory: pytest.TempPathFactory) -> Served:
    """The family's engine."""
    return Served(checkpoint(family), tmp_path_factory.mktemp("methods"), prompts(shown(family)))


class TestPictures(EqualToApply):
    """Alone, tall, wide, several, with text between them; and text only."""


def test_one_token_and_all_tokens(served: Served) -> None:
    one = served.prompts[0]
    served.check([(one, {"method": "divprune", "tokens": 1}), (one, {"method": "divprune", "ratio": 1.0})])
