"""Generation without a cache: every step keeps what the first step kept."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import tokenprune as tp
from tests.support.simple import fastv, pair
from tests.support.tiny import CASES
from tests.support.tiny.core import CACHE
from tokenprune.adapters import adapter_for
from tokenprune.engine.replay import Replays, pixel_inputs


def kept_by_step(inputs: dict[str, Tensor], method: tp.Method, steps: int = 4, **more: Any) -> list[list[Tensor]]:
    """What each stage kept in each step."""
    model, _ = pair()
    shown: list[list[Tensor]] = []

    def note(ids: Tensor, scores: Tensor) -> Tensor:
        shown.append([stage.kept.clone() for stage in run.stages])
        return scores

    with tp.apply(model, method) as run, torch.no_grad():
        model.generate(**inputs, max_new_tokens=steps, use_cache=False, logits_processor=[note], **more)
    return shown


@pytest.mark.parametrize("ratios", [[1.0, 0.4], [0.5, 0.5], [0.5, 0.5, 0.3], [0.6, 0.3]], ids=str)
def test_stages_that_drop_nothing(ratios: list[float]) -> None:
    """A skipped stage, before or between others, does not make the choice anew."""
    inputs = pair(variant="image")[1]
    method = fastv([1, 2, 3][: len(ratios)], name="keep_schedule", ratios=ratios)
    first, *later = kept_by_step(inputs, method)
    assert len(later) == 3
    for step in later:
        for one, other in zip(first, step, strict=True):
            assert torch.equal(one, other)


@torch.no_grad()
def test_generations_take_turns() -> None:
    """Contrastive decoding runs the model on several pictures a step: all keep their choice."""
    model, inputs = pair(batch=1, padding="none")
    noise = torch.Generator().manual_seed(0)
    pixels = inputs["pixel_values"]
    pictures = [{**inputs, "pixel_values": torch.rand(pixels.shape, generator=noise)} for _ in range(6)]
    kept: dict[int, list[Tensor]] = {number: [] for number in range(len(pictures))}
    ids = inputs["input_ids"]
    with tp.apply(model, fastv([1], name="keep_count", tokens=4)) as run:
        for step in range(4):
            for number, picture in enumerate(pictures):
                model(**{**picture, "input_ids": ids, "attention_mask": torch.ones_like(ids)}, use_cache=False)
                kept[number].append(run.stages[0].kept)
            ids = torch.cat([ids, torch.tensor([[20 + 7 * step]])], 1)
    for choices in kept.values():
        assert all(torch.equal(choices[0], choice) for choice in choices)
    assert len({tuple(choices[0][0].tolist()) for choices in kept.values()}) > 1


@torch.no_grad()
def test_a_later_turn_continues_no_generation_without_a_cache() -> None:
    """It brings the ids of such a step and one more, and the same picture, behind other text: it chooses anew."""
    model, inputs = pair(batch=1, padding="none")
    ids, pixels = inputs["input_ids"], inputs["pixel_values"]
    turn = torch.cat([ids, torch.tensor([[20]])], 1)
    text = torch.randint(3, 100, (1, 30), generator=torch.Generator().manual_seed(0))
    mask = torch.ones(1, 30 + turn.shape[1], dtype=torch.long)
    kept = []
    for remembered in (True, False):
        with tp.apply(model, fastv()) as run:
            cache = model(input_ids=text)[CACHE]
            if remembered:
                model(**inputs, use_cache=False)
                alone = run.stages[0].kept
            model(input_ids=turn, pixel_values=pixels, attention_mask=mask, use_cache=False, **{CACHE: cache})
            kept.append(run.stages[0].kept)
    assert torch.equal(*kept)
    assert not torch.equal(kept[0], alone)


@pytest.mark.parametrize(("layers", "percent"), [([1], 20), ([1, 2], 20), ([1], 34)])
@pytest.mark.parametrize("more", [{}, {"num_beams": 2}], ids=str)
@torch.no_grad()
def test_a_budget_in_flops_is_that_of_the_prompt(layers: list[int], percent: int, more: dict[str, Any]) -> None:
    """Each step has one text token more, for which the budget would leave other counts, or none at all."""
    model, inputs = pair(batch=1, padding="none")
    method = fastv(layers, name="flops_reduction", percent=percent, scope="decoder")
    how = {"max_new_tokens": 12, "return_dict_in_generate": True, "output_logits": True, **more}
    with tp.apply(model, method):
        cached = model.generate(**inputs, **how)
        ours = model.generate(**inputs, **how, use_cache=False)
    assert torch.equal(ours.sequences, cached.sequences)
    torch.testing.assert_close(torch.stack(ours.logits), torch.stack(cached.logits), atol=1e-4, rtol=0)


@pytest.mark.parametrize("seen_by_torch", [True, False], ids=["in place", "behind torch"])
@torch.no_grad()
def test_a_buffer_that_holds_the_next_picture_is_another_picture(seen_by_torch: bool) -> None:
    """A server may write every picture into one buffer: the next one gets a choice of its own."""
    model, inputs = pair(batch=1, padding="none")
    noise = torch.Generator().manual_seed(3)
    buffer, ids = inputs["pixel_values"].clone(), inputs["input_ids"]
    longer = torch.cat([ids, torch.tensor([[20]])], 1)

    def kept(ids: Tensor) -> list[int]:
        model(input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=buffer, use_cache=False)
        return run.stages[0].kept[0].tolist()

    for _ in range(5):
        picture = torch.rand(buffer.shape, generator=noise)
        with tp.apply(model, fastv()) as run:
            kept(ids)
            if seen_by_torch:
                buffer.copy_(picture)
            else:
                buffer.numpy()[:] = picture.numpy()
            found = kept(longer)
            assert kept(torch.cat([longer, torch.tensor([[21]])], 1)) == found  # this one does continue
        with tp.apply(model, fastv()) as run:
            alone = kept(longer)
        assert found == alone


@torch.no_grad()
def test_a_buffer_that_holds_the_next_prompt_is_another_prompt() -> None:
    """Of the same picture: the tokens in front of it differ, and are no continuation of what stood there."""
    model, inputs = pair(batch=1, padding="none")
    ids, pixels = inputs["input_ids"], inputs["pixel_values"]
    length = ids.shape[1]
    for question in torch.randint(3, 100, (5, length), generator=torch.Generator().manual_seed(0)):
        following = torch.cat([torch.where(ids == 150, ids, question[None]), torch.tensor([[20]])], 1)
        buffer = torch.cat([ids, torch.zeros(1, 4, dtype=torch.long)], 1)
        with tp.apply(model, fastv()) as run:
            model(input_ids=buffer[:, :length], pixel_values=pixels, use_cache=False)
            buffer[:, : length + 1] = following
            model(input_ids=buffer[:, : length + 1], pixel_values=pixels, use_cache=False)
            found = run.stages[0].kept
        with tp.apply(model, fastv()) as run:
            model(input_ids=following, pixel_values=pixels, use_cache=False)
        assert torch.equal(found, run.stages[0].kept)


def test_images_are_known_by_any_name_that_says_pixel() -> None:
    """DeepSeek-VL gets ``high_res_pixel_values``, too."""
    pixels = torch.zeros(1)
    call = {"high_res_pixel_values": pixels, "pixel_values": pixels, "attention_mask": pixels}
    assert set(pixel_inputs(call)) == {"high_res_pixel_values", "pixel_values"}


@pytest.mark.parametrize("change", ["a pixel", "a feature", "nothing"])
def test_a_step_with_other_values_in_the_same_memory_is_another_prompt(change: str) -> None:
    """Of what ``generate`` encoded, too, in whatever it is wrapped."""
    adapter = adapter_for(CASES["llava"].build())
    pixels, encoded = torch.zeros(2, 3), torch.zeros(4, dtype=torch.bfloat16)
    ids = torch.tensor([[3, 150, 4]])
    call = {"pixel_values": pixels, "mm_encoder_outputs": {"image": {"pooler_output": [encoded]}}, "use_cache": False}
    replays = Replays()
    replays.remember({**call, "input_ids": ids}, {})
    if change == "a pixel":
        pixels[1, 2] = 1e-30
    if change == "a feature":
        encoded[3] = 1
    following = replays.take({**call, "input_ids": torch.cat([ids, ids[:, :1]], 1)}, adapter)
    assert following == ({} if change == "nothing" else None)
