"""ApET's random start decides much: its note states how much, measured on the embedded model."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch

import tokenprune as tp
from tokenprune.authoring import MissingDataError
from tokenprune_embedded.models import Digits
from tokenprune_embedded.tasks.digits import Digits as DigitsTask


@pytest.mark.slow
def test_two_starts_keep_less_than_half_of_the_same_tokens() -> None:
    try:
        loaded = Digits().load()
    except MissingDataError as error:
        pytest.skip(str(error))
    del loaded.model.get_decoder().layers[1:]  # the tokens are chosen before them
    inputs = loaded.encode(list(DigitsTask(questions=16).samples()))
    kept = []
    for seed in range(3):
        method = {
            "layers": {"name": "fixed", "layers": [0]},
            "pruner": {"name": "apet", "seed": seed},
            "budget": {"name": "keep_ratio", "ratio": 0.2223},
        }
        with torch.no_grad(), tp.apply(loaded.model, tp.Method.from_dict(method)) as run:
            loaded.model(**inputs)
        kept.append([set(row) for row in run.stages[0].kept.tolist()])
    shared = [len(a & b) / len(a) for one, two in combinations(kept, 2) for a, b in zip(one, two, strict=True)]
    assert 0.25 < sum(shared) / len(shared) < 0.5
