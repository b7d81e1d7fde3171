"""The whole prompt as it entered layer 0: the same at every stage, whatever earlier stages dropped."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch

import tokenprune as tp
from tests.support.literal import record
from tokenprune.errors import ScoreError
from tokenprune.ops.topk import topk_by_group
from tokenprune.pruners.base import Pruner, Selection
from tokenprune.signals.context import PruneContext

SHOWN: list[PruneContext] = []
LATEST: list[weakref.ref[PruneContext]] = []


class Shows(Pruner):
    """Keeps every image's first tokens, and shows the context that it got."""

    asks: bool = True

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"hidden", "text", "embeddings"} if self.asks else {"hidden", "text"})

    def select(self, ctx: PruneContext) -> Selection:
        SHOWN.append(ctx)
        LATEST.append(weakref.ref(ctx))
        ctx.check_finite(ctx.positions.float(), "this one")
        assert ctx.prompt is not None
        return Selection(topk_by_group(-ctx.positions.float(), ctx.groups, ctx.quotas))


def method(layers: tuple[int, ...], tokens: tuple[int, ...], asks: bool = True) -> tp.Method:
    return tp.Method(
        layers={"name": "fixed", "layers": layers},
        pruner=Shows(asks=asks),
        budget={"name": "keep_schedule", "tokens": tokens},
    )


@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "gemma3"])
@pytest.mark.parametrize("layers", [(0, 2, 3), (1, 2, 3)])
def test_every_stage_sees_the_whole_prompt(name: str, padding: Any, layers: tuple[int, ...]) -> None:
    """In batches in which samples have different numbers of images."""
    recording = record(name, "ragged" if name != "gemma3" else "multi", padding, batch=3)
    SHOWN.clear()
    with torch.no_grad(), tp.apply(recording.model, method(layers, (13, 9, 4))) as run:
        recording.model(**recording.inputs)
    assert len(SHOWN) == 3
    for number, ctx in enumerate(SHOWN):
        prompt = ctx.prompt
        assert torch.equal(prompt.embeddings.double(), recording.layer_inputs[0])
        for sample, images in enumerate(recording.image_positions):
            assert prompt.visual_mask[sample].nonzero()[:, 0].tolist() == [p for image in images for p in image]
            assert prompt.text_mask[sample].nonzero()[:, 0].tolist() == recording.text_positions[sample]
            rows = prompt.rows[sample]
            text = prompt.on_rows(prompt.text_mask)[sample]
            assert rows[text].tolist() == recording.text_positions[sample], "no text is ever dropped"
            assert torch.equal(text, ctx.text_mask[sample])
            left = rows[prompt.on_rows(prompt.visual_mask)[sample]].tolist()
            before = [p for image in images for p in image] if number == 0 else None
            kept = [int(p) for p in run.stages[number - 1].kept[sample] if p >= 0]
            assert left == (before or kept)


def test_it_is_let_go_after_the_last_stage_that_needs_it() -> None:
    """Not kept to the end: it is as large as the activations of a layer."""
    recording = record("llava", "image")
    held: list[bool] = []
    with torch.no_grad(), tp.apply(recording.model, method((1, 2), (9, 4))):
        engine: Any = vars(recording.model)["forward"].replacement.func.__self__
        for layer in recording.model.get_decoder().layers:
            layer.register_forward_hook(lambda *_: held.append(engine.thread.current._embeddings is not None))
        recording.model(**recording.inputs)
    assert held == [True, True, *[False] * (len(held) - 2)]


def test_what_a_stage_saw_is_let_go_when_it_is_over() -> None:
    """Hidden states, keys and embeddings are as large as activations: only the result may stay."""
    recording = record("llava", "image")
    left: list[list[bool]] = []
    with torch.no_grad(), tp.apply(recording.model, method((1, 2), (9, 4))):
        for layer in recording.model.get_decoder().layers:
            layer.register_forward_hook(lambda *_: left.append([context() is not None for context in LATEST]))
        LATEST.clear()
        SHOWN.clear()
        recording.model.get_decoder().layers[1].register_forward_pre_hook(lambda *_: SHOWN.clear())
        recording.model.get_decoder().layers[2].register_forward_pre_hook(lambda *_: SHOWN.clear())
        recording.model(**recording.inputs)
    assert left == [[], [False], *[[False, False]] * (len(left) - 2)]


def test_whoever_asks_must_declare_it() -> None:
    recording = record("llava", "image")
    with (
        torch.no_grad(),
        tp.apply(recording.model, method((1,), (4,), asks=False)),
        pytest.raises(ScoreError, match="does not declare"),
    ):
        recording.model(**recording.inputs)
