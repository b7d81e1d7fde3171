"""Smaller pictures: what a model is shown, against inputs that are written out by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf
from PIL import Image
from torch.nn import functional

from tests.support.tiny import CASES
from tests.support.tiny.core import IMAGE
from tests.support.tiny.parts import CLIP, SIGLIP, text
from tokenprune.adapters import adapter_for
from tokenprune.budgets.base import Budget
from tokenprune.budgets.flops_reduction import FlopsReduction
from tokenprune.budgets.keep import Adaptive, DropAll, KeepCount, KeepRatio, KeepSchedule
from tokenprune.budgets.layer_average import LayerAverage
from tokenprune.errors import BudgetError, SampleError, UnsupportedModelError
from tokenprune.flops.decoder import prefill_cost
from tokenprune.models.base import LoadedModel
from tokenprune.models.downsample import Downsampler, Smaller, check_budget
from tokenprune.models.smaller import not_enlarging, resized, smaller_image
from tokenprune.tasks.base import Sample

DINO = {
    "model_type": "dinov2",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
    "mlp_ratio": 2,
}
TOWERS = {"clip": CLIP, "siglip": SIGLIP, "dinov2": DINO}


def llava(tower: str) -> tf.PreTrainedModel:
    """A tiny LLaVA: pictures of 32 x 32 pixels are 4 x 4 tokens."""
    config = tf.LlavaConfig(
        vision_config=TOWERS[tower],
        text_config=text(),
        image_token_id=IMAGE,
        image_seq_length=16,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full" if tower == "siglip" else "default",
    )
    torch.manual_seed(5)
    return tf.LlavaForConditionalGeneration(config).eval()


def loaded(model: tf.PreTrainedModel, name: str = "tiny") -> LoadedModel:
    return LoadedModel(model, None, name, lambda samples: pytest.fail("the processor ran again"))


def samples(count: int) -> list[Sample]:
    return [Sample(f"s{number}", (), "q", "", "", "") for number in range(count)]


def prompt(*lengths: int, pictures: int = 1, size: tuple[int, int] = (4, 4)) -> dict[str, torch.Tensor]:
    """Left-padded prompts with text before, between and behind the pictures, of so many words behind them."""
    rows = [[1, *([IMAGE] * size[0] * size[1] + [7]) * pictures, *range(10, 10 + length)] for length in lengths]
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    noise = torch.Generator().manual_seed(1)
    pixels = torch.randn(len(lengths) * pictures, 3, 32, 32, generator=noise)
    return {"input_ids": ids, "attention_mask": (ids != 0).long(), "pixel_values": pixels}


def smaller(model: tf.PreTrainedModel, inputs: dict[str, torch.Tensor], budget: Budget) -> tuple[Downsampler, Smaller]:
    sampler = Downsampler(loaded(model), adapter_for(model))
    return sampler, sampler.smaller(samples(len(inputs["input_ids"])), inputs, budget)


def visual(made: Smaller) -> list[int]:
    """Visual tokens of every sample."""
    return [int(count) for count in (made.inputs["input_ids"] == IMAGE).sum(1)]


def mean_of_area(features: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """Each of rows x columns tokens is the mean of all of the 4 x 4 whose cells its area touches, one by one."""
    cells = features.double().reshape(4, 4, -1)
    out = []
    for row in range(rows):
        for column in range(columns):
            touched = [
                cells[i, j]
                for i in range(4)
                for j in range(4)
                if i < 4 * (row + 1) / rows and i + 1 > 4 * row / rows
                if j < 4 * (column + 1) / columns and j + 1 > 4 * column / columns
            ]
            out.append(torch.stack(touched).mean(0))
    return torch.stack(out)


@torch.no_grad()
def literal(model: Any, inputs: dict[str, torch.Tensor], rows: int, columns: int, pictures: int) -> torch.Tensor:
    """Logits of the model on prompts that are put together by hand, from embeddings."""
    small = functional.interpolate(inputs["pixel_values"], (8 * rows, 8 * columns), mode="bicubic", antialias=True)
    blurred = functional.interpolate(small, (32, 32), mode="bicubic", antialias=True)
    features = model.model.get_image_features(
        blurred,
        vision_feature_layer=model.config.vision_feature_layer,
        vision_feature_select_strategy=model.config.vision_feature_select_strategy,
        return_dict=True,
    ).pooler_output
    pooled = torch.cat([mean_of_area(item, rows, columns) for item in features]).float()
    lengths = [int((ids != 0).sum()) - 17 * pictures - 1 for ids in inputs["input_ids"]]
    by_hand = prompt(*lengths, pictures=pictures, size=(rows, columns))
    embeds = model.get_input_embeddings()(by_hand["input_ids"])
    embeds[by_hand["input_ids"] == IMAGE] = pooled
    logits: torch.Tensor = model(inputs_embeds=embeds, attention_mask=by_hand["attention_mask"]).logits
    return logits


@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize("pictures", [1, 2])
@pytest.mark.parametrize(("tokens", "grid"), [(4, (2, 2)), (9, (3, 3)), (10, (3, 3)), (7, (2, 3)), (1, (1, 1))])
def test_the_model_sees_a_smaller_picture(tower: str, pictures: int, tokens: int, grid: tuple[int, int]) -> None:
    """It is shrunk and enlarged again, and the features of that are averaged. Then the model is as before."""
    model = llava(tower)
    inputs = prompt(3, 5, pictures=pictures)
    sampler, made = smaller(model, inputs, KeepCount(tokens=tokens * pictures))
    by_hand = prompt(3, 5, pictures=pictures, size=grid)
    assert made.averaged == grid
    assert made.inputs["input_ids"].equal(by_hand["input_ids"])
    assert made.inputs["attention_mask"].equal(by_hand["attention_mask"])
    expected = literal(model, inputs, *grid, pictures)
    real = by_hand["attention_mask"].bool()
    with torch.no_grad():
        before = model(**inputs).logits
        with sampler.running(made):
            seen = model(**made.inputs).logits
            written = model.generate(**made.inputs, max_new_tokens=1, do_sample=False)
        assert model(**inputs).logits.equal(before)  # nothing is left behind
    torch.testing.assert_close(seen[real], expected[real], rtol=1e-4, atol=1e-5)
    assert written[:, -1].equal(expected[:, -1].argmax(-1))


def test_who_shares_the_batch_does_not_matter() -> None:
    model = llava("clip")
    both = prompt(3, 5)
    sampler, made = smaller(model, both, KeepRatio(ratio=0.25))
    second = {name: value[1:] for name, value in both.items()}
    _, alone = smaller(model, second, KeepRatio(ratio=0.25))
    with torch.no_grad(), sampler.running(made):
        together, single = model(**made.inputs).logits[1], model(**alone.inputs).logits[0]
    torch.testing.assert_close(together[-single.shape[0] :], single, rtol=1e-4, atol=1e-5)


def test_all_tokens_are_the_picture_as_it_is() -> None:
    model, inputs = llava("clip"), prompt(3)
    sampler = Downsampler(loaded(model), adapter_for(model))
    assert sampler.smaller(samples(1), inputs, KeepCount(tokens=16)) == Smaller(inputs)
    text_only = {"input_ids": torch.tensor([[1, 7, 8]]), "attention_mask": torch.ones(1, 3, dtype=torch.long)}
    assert sampler.smaller(samples(1), text_only, KeepCount(tokens=4)) == Smaller(text_only)


def test_budgets_mean_tokens_before_the_first_layer() -> None:
    """A layer average is what is kept; a reduction of FLOPs is that of pruning before layer 0."""
    model, inputs = llava("clip"), prompt(3)
    for budget in (LayerAverage(tokens=4), LayerAverage(ratio=0.25), KeepSchedule(tokens=(4,)), KeepRatio(ratio=0.3)):
        assert visual(smaller(model, inputs, budget)[1]) == [4]
    cost = prefill_cost(model.config, 5)  # a start, a separator, three words
    whole, layers = [16] * 4, 4
    tower = cost(whole, 16) - cost(whole, None)
    saved = 1 - (cost([9] * layers, None) + tower) / cost(whole, 16)
    for percent, tokens in ((100 * saved - 1e-6, 9), (100 * saved + 1e-6, 6)):
        assert visual(smaller(model, inputs, FlopsReduction(percent=percent))[1]) == [tokens]


def test_budgets_without_one_number_are_refused() -> None:
    for budget in (Adaptive(), KeepSchedule(ratios=(0.5, 0.2))):
        with pytest.raises(BudgetError):
            check_budget(budget)
    check_budget(KeepRatio(ratio=0.5))
    with pytest.raises(BudgetError, match="the budget keeps no visual token: there is no such picture"):
        smaller(llava("clip"), prompt(3), DropAll())
    with pytest.raises(BudgetError, match="a budget of 1 visual tokens leaves a part of 2 pictures or frames without"):
        smaller(llava("clip"), prompt(3, pictures=2), KeepCount(tokens=1))


def test_samples_that_cannot_share_a_batch_are_told_apart() -> None:
    """Whoever asks then asks them one by one: one has two pictures, the other one."""
    model = llava("clip")
    one, two = prompt(3), prompt(3, pictures=2)
    ids = functional.pad(one["input_ids"], (two["input_ids"].shape[1] - one["input_ids"].shape[1], 0))
    ids = torch.cat([ids, two["input_ids"]])
    pixels = torch.cat([one["pixel_values"], two["pixel_values"]])
    inputs = {"input_ids": ids, "attention_mask": (ids != 0).long(), "pixel_values": pixels}
    with pytest.raises(SampleError, match="sample 's0' and its batch get smaller pictures of different sizes"):
        smaller(model, inputs, KeepCount(tokens=9))


@pytest.mark.parametrize("family", ["llava_next", "gemma3", "internvl", "video_llava"])
def test_other_families_are_refused(family: str) -> None:
    model = CASES[family].build()
    with pytest.raises(UnsupportedModelError, match=r"'tiny' \(\w+\) cannot be shown smaller pictures"):
        Downsampler(loaded(model), adapter_for(model))


def test_pixels_are_averaged_and_not_picked() -> None:
    """A pattern of single pixels becomes grey: both ways to make pictures smaller look at all pixels."""
    board = (np.indices((32, 32)).sum(0) % 2 * 255).astype(np.uint8)
    small = np.asarray(smaller_image(Image.fromarray(np.stack([board] * 3, -1)), (8, 16)))
    assert small.shape == (8, 16, 3)
    assert abs(small[2:-2, 2:-2].astype(float) - 127.5).max() < 3
    pixels = torch.from_numpy(board).float().expand(1, 3, -1, -1)
    assert (resized(pixels, (8, 8))[..., 2:-2, 2:-2] - 127.5).abs().max() < 3
    assert resized(pixels.bfloat16(), (8, 8)).dtype == torch.bfloat16
    palette = Image.fromarray(np.stack([board] * 3, -1)).convert("P")
    assert smaller_image(palette, (8, 8)).mode == "RGB"


def test_a_processor_is_as_it_was() -> None:
    class Part:
        def __init__(self) -> None:
            self.size = {"shortest_edge": 4096, "longest_edge": 10**6}

    class Both:
        image_processor, video_processor = Part(), Part()

    size = Both.image_processor.size

    def fail() -> None:
        with not_enlarging(Both):
            assert Both.image_processor.size == Both.video_processor.size == {**size, "shortest_edge": 1}
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert Both.image_processor.size is size
    with not_enlarging(None):
        pass


def test_a_processor_that_enlarges_is_an_error() -> None:
    """What came out is counted: a picture that is as large as before is no smaller picture."""
    model = CASES["qwen2_vl"].build()
    one = CASES["qwen2_vl"].batch(model).inputs
    picture = Image.fromarray(np.zeros((32, 32, 3), dtype=np.uint8))
    asked = [replace(sample, images=(picture,)) for sample in samples(len(one["input_ids"]))]
    stubborn = LoadedModel(model, None, "stubborn", lambda _: dict(one))
    with pytest.raises(UnsupportedModelError, match=r"the processor of 'stubborn' made \d+ visual tokens of smaller"):
        Downsampler(stubborn, adapter_for(model)).smaller(asked, one, KeepRatio(ratio=0.3))
