"""DART against a literal transcription with lists, in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import tokenprune as tp
from tests.support.literal import Recording, cosine, exact_vectors, record
from tests.support.tiny import CASES
from tests.support.tiny.core import CACHE
from tokenprune.budgets.base import Schedule
from tokenprune.ops.pivots import least_similar
from tokenprune.pruners.dart import Dart


def literal_share(states: list[Tensor], free: list[int], pivots: list[Tensor], count: int) -> list[int]:
    """Pivots in turn take the tokens least like them; ties go to the smaller index."""
    free, taken = list(free), []
    for number, pivot in enumerate(pivots):
        share = count // len(pivots) + (1 if number < count % len(pivots) else 0)
        ranked = sorted(free, key=lambda i: (round(cosine(pivot, states[i]), 9), i))
        taken += ranked[:share]
        free = [i for i in free if i not in taken]
    return sorted(taken)


def literal(
    states: list[Tensor], norms: list[float], texts: list[Tensor], text_norms: list[float], count: int, wanted: int
) -> list[int]:
    """Indices of one image's tokens that DART keeps, given the text behind the image."""

    def best(values: list[float], number: int) -> list[int]:
        return sorted(range(len(values)), key=lambda i: (-values[i], i))[:number]

    own = best(norms, min(wanted, count))
    pivots = [states[i] for i in own] + [texts[i] for i in best(text_norms, wanted)]
    free = [i for i in range(len(states)) if i not in own]
    return sorted(own + literal_share(states, free, pivots, count - len(own)))


def shared(states: Tensor, free: list[int], pivots: Tensor, count: int) -> list[int]:
    mask = torch.zeros(1, len(states), dtype=torch.bool)
    mask[0, free] = True
    present = torch.ones(1, len(pivots), dtype=torch.bool)
    return least_similar(states[None], mask, pivots[None], present, torch.tensor([count]))[0].nonzero()[:, 0].tolist()


@pytest.mark.parametrize("seed", range(5))
def test_pivots_share_the_rest(seed: int) -> None:
    noise = torch.Generator().manual_seed(seed)
    states, pivots = torch.randn(20, 6, generator=noise), torch.randn(5, 6, generator=noise)
    free = [i for i in range(20) if i % 7]
    for count in (0, 1, 4, 5, 8, 17):
        assert shared(states, free, pivots, count) == literal_share(list(states), free, list(pivots), count)


@pytest.mark.parametrize("seed", range(5))
def test_ties_keep_the_earlier_position(seed: int) -> None:
    states, pivots = exact_vectors(15, 4, seed), exact_vectors(3, 2, seed + 10)
    for count in (1, 4, 9, 15):
        free = list(range(15))
        assert shared(states, free, pivots, count) == literal_share(list(states), free, list(pivots), count)


def test_absent_pivots_take_nothing() -> None:
    noise = torch.Generator().manual_seed(0)
    states, pivots = torch.randn(3, 10, 4, generator=noise), torch.randn(3, 4, 4, generator=noise)
    present = torch.tensor([[True, False, True, True], [False, True, False, False], [False] * 4])
    counts = torch.tensor([5, 3, 0])
    kept = least_similar(states, torch.ones(3, 10, dtype=torch.bool), pivots, present, counts)
    for number in range(3):
        there = [pivot for pivot, is_there in zip(pivots[number], present[number], strict=True) if is_there]
        wanted = literal_share(list(states[number]), list(range(10)), there, int(counts[number])) if there else []
        assert kept[number].nonzero()[:, 0].tolist() == wanted


def test_nothing_waits_for_the_device() -> None:
    """The meta device has no values: whatever asks for one raises."""
    states, pivots = torch.empty(2, 9, 5, device="meta"), torch.empty(2, 4, 5, device="meta")
    free, present = states[:, :, 0] > 0, pivots[:, :, 0] > 0
    assert least_similar(states, free, pivots, present, present.sum(1)).shape == (2, 9)


def method(tokens: int, layer: int = 2, **fields: Any) -> dict[str, Any]:
    return {
        "layers": {"name": "fixed", "layers": [layer]},
        "pruner": {"name": "dart", **fields},
        "budget": {"name": "keep_count", "tokens": tokens},
    }


def keys_from_first_token(recording: Recording) -> list[Tensor]:
    """The keys that the model caches when positions count from each sample's first token, in float64.

    Qwen-VL counts so by itself. Others are told, as ``generate`` does.
    """
    inputs, mask = dict(recording.inputs), recording.inputs["attention_mask"]
    if "qwen" not in recording.model.config.model_type:
        inputs["position_ids"] = (mask.cumsum(1) - 1).masked_fill(mask == 0, 1)
    with torch.no_grad():
        cache = recording.model(**inputs, use_cache=True)[CACHE]
    return [layer.keys.transpose(1, 2).flatten(2).double() for layer in cache.layers]


def expected(recording: Recording, tokens: int, layer: int, pivots: int = 4) -> list[list[int]]:
    kept_by_sample, keys = [], keys_from_first_token(recording)[layer - 1]
    for sample, images in enumerate(recording.image_positions):
        hidden = recording.layer_inputs[layer][sample]
        norms = [sum(map(abs, key.tolist())) for key in keys[sample]]
        last = max(position for image in images for position in image)
        text = [position for position in recording.text_positions[sample] if position > last]
        kept: list[int] = []
        for image, count in zip(images, recording.quotas(sample, tokens), strict=True):
            chosen = literal(
                [hidden[position] for position in image],
                [norms[position] for position in image],
                [hidden[position] for position in text],
                [norms[position] for position in text],
                count,
                pivots,
            )
            kept += [image[i] for i in chosen]
        kept_by_sample.append(sorted(kept))
    return kept_by_sample


@pytest.mark.parametrize("tokens", [3, 4, 8, 15])
@pytest.mark.parametrize(
    ("name", "variant"),
    [
        ("llava", "image"),
        ("llava", "multi"),
        ("llava_next", "ragged"),
        ("qwen2_5_vl", "multi"),
        ("qwen3_vl", "image"),
        ("gemma3", "image"),
        ("internvl", "multi"),
    ],
)
def test_the_engine_keeps_what_the_definition_says(name: str, variant: Any, tokens: int) -> None:
    """The keys are those of the model's own cache: behind rotary embedding."""
    recording = record(name, variant, batch=3)
    layer = 3 if name == "gemma3" else 2  # whose layer 1 has a sliding window, and not all keys in its cache
    assert recording.kept(method(tokens, layer)) == expected(recording, tokens, layer)


@pytest.mark.parametrize("positions", [False, True])
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
@torch.no_grad()
def test_padding_changes_nothing(name: str, positions: bool) -> None:
    """A sample keeps the same tokens alone and left-padded in a batch, with position ids and without."""
    case = CASES[name]
    model = case.build()
    alone = case.batch(model, 1).inputs
    for pad in (1, 3, 10):
        padded = {**alone, "input_ids": F.pad(alone["input_ids"], (pad, 0))}
        padded["attention_mask"] = F.pad(torch.ones_like(alone["input_ids"]), (pad, 0))
        for key in ("token_type_ids", "mm_token_type_ids"):
            if key in alone:
                padded[key] = F.pad(alone[key], (pad, 0))
        if positions and name == "llava":
            mask = padded["attention_mask"]
            padded["position_ids"] = (mask.cumsum(1) - 1).masked_fill(mask == 0, 1)
        kept = []
        for inputs in (alone, padded):
            with tp.apply(model, tp.Method.from_dict(method(6))) as run:
                model(**inputs)
            kept.append(run.stages[0].kept)
        assert torch.equal(kept[0] + pad, kept[1])


@pytest.mark.parametrize("pivots", [1, 2, 20])
def test_numbers_of_pivots(pivots: int) -> None:
    """More pivots than there are text tokens behind the image: then there are fewer."""
    recording = record("llava", "multi", batch=3)
    fields = {"image_pivots": pivots, "text_pivots": pivots}
    assert recording.kept(method(13, 1, **fields)) == expected(recording, 13, 1, pivots)


def test_without_text_pivots_the_image_pivots_share_all() -> None:
    recording = record("llava", "image")
    for sample, kept in enumerate(recording.kept(method(9, text_pivots=0))):
        image, hidden = recording.image_positions[sample][0], recording.layer_inputs[2][sample]
        norms = [float(recording.cached_keys[1][sample, position].abs().sum()) for position in image]
        assert kept == [image[i] for i in literal([hidden[p] for p in image], norms, [], [], 9, 4)]


def test_it_is_refused_before_the_first_layer() -> None:
    recording = record("llava")
    with pytest.raises(tp.errors.LayerError, match="Dart reads attention of the layer before layer 0"):
        recording.kept(method(5, 0))


def test_published_defaults() -> None:
    """Layer 2, four and four pivots, a reduction ratio of 0.778."""
    made = tp.load_method("dart")
    assert made.pruner == Dart(image_pivots=4, text_pivots=4)
    assert made.layers.layers == (2,)  # type: ignore[attr-defined]
    assert made.budget.keep(1000, Schedule((2,), 32)) == (222,)
