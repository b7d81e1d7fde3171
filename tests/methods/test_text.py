"""Methods before the language model keep the same tokens whatever the text says: a serving engine can run them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import tokenprune as tp
from tests.support.matrix import model_of
from tests.support.method_table import methods, prepared
from tests.support.tiny import CASES
from tests.support.tiny.core import FIRST_TEXT, LAST_TEXT

FRAMES = {"dycoke", "evs", "framefusion"}
"""Methods that compare frames, and refuse single images."""
READS_TEXT = {"cdpruner"}
"""Methods that read the question before layer 0."""


@torch.no_grad()
def first_stage(name: str, inputs: dict[str, Tensor]) -> tuple[int, list[list[int]]]:
    """The layer of the first stage, and what it keeps."""
    model = model_of("llava", "sdpa")
    with tp.apply(model, prepared(name)) as run:
        run.annotate(sample_ids=[0, 1])
        model(**inputs)
        return run.choice.layers[0], run.stages[0].kept.tolist()


@pytest.mark.parametrize("name", [name for name in methods() if name not in FRAMES])
def test_before_the_language_model_no_text_is_read(name: str) -> None:
    batch, _ = CASES["llava"].mixed(model_of("llava", "sdpa"), [[("image", 0), ("image", 1)], [("image", 0)]], seed=3)
    ids = batch.inputs["input_ids"]
    noise = torch.randint(FIRST_TEXT, LAST_TEXT, ids.shape, generator=torch.Generator().manual_seed(5))
    other = torch.where((ids >= FIRST_TEXT) & (ids < LAST_TEXT), noise, ids)
    layer, kept = first_stage(name, batch.inputs)
    if layer == 0:
        assert (kept == first_stage(name, {**batch.inputs, "input_ids": other})[1]) == (name not in READS_TEXT)
