"""SparseVLM against a literal transcription with lists, in float64: stage by stage, kept tokens and cluster values."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import tokenprune as tp
from tests.ops.test_dpc_knn import literal as literal_clusters
from tests.support.literal import exact_vectors, record
from tests.support.tiny import CASES
from tokenprune.budgets.base import Schedule
from tokenprune.ops.raters import raters
from tokenprune.ops.recycle import cluster_count, recycle, recycled_count
from tokenprune.ops.topk import apportion
from tokenprune.pruners.sparsevlm import SparseVLM
from tokenprune.selectors.base import SelectorContext

Rows = list[list[float]]


def literal_raters(visual: Rows, text: Rows) -> list[int]:
    """Indices of the text tokens whose mean softmax weight is above the mean."""
    means = [0.0] * len(text)
    for v in visual:
        dots = [math.fsum(a * b for a, b in zip(v, t, strict=True)) for t in text]
        top = max(dots)
        weights = [math.exp(dot - top) for dot in dots]
        for i, weight in enumerate(weights):
            means[i] += weight / sum(weights) / len(visual)
    average = sum(means) / len(means)
    above = [i for i, mean in enumerate(means) if mean > average + 1e-12]
    return above or list(range(len(text)))


def literal_counts(tokens: int, quota: int) -> tuple[int, int, int]:
    """Tokens kept for themselves, recycled ones and clusters: tried from few clusters to many."""
    if tokens == quota:
        return quota, 0, 0
    for made in range(quota):
        dropped = tokens - (quota - made)
        pool = int(0.3 * dropped) + 1
        if min(int(pool / 10) + 1, quota - 1) == made:
            return quota - made, pool, made
    raise AssertionError((tokens, quota))


def literal_selection(scores: list[float], states: Rows, quota: int) -> dict[int, list[float]]:
    """Kept tokens, and what they become."""
    alone, pool, made = literal_counts(len(scores), quota)
    ranked = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    kept = {i: states[i] for i in ranked[:alone]}
    best = ranked[alone : alone + pool]
    if made:
        merged = literal_clusters(torch.tensor([states[i] for i in best], dtype=torch.float64), made)
        kept |= {best[centre]: mean for centre, mean in merged.items()}
    return kept


def method(layers: tuple[int, ...], tokens: tuple[int, ...], **fields: Any) -> tp.Method:
    return tp.Method.from_dict(
        {
            "layers": {"name": "fixed", "layers": list(layers)},
            "pruner": {"name": "sparsevlm", **fields},
            "budget": {"name": "keep_schedule", "tokens": list(tokens)},
        }
    )


# ---- the parts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "kept", "clustered"),
    [
        *[(576, 300, 9), (309, 200, 4), (204, 110, 3)],
        *[(576, 303, 9), (312, 110, 7), (117, 36, 3)],
        *[(576, 66, 16), (82, 30, 2), (32, 17, 1)],
    ],
)
def test_published_counts(before: int, kept: int, clustered: int) -> None:
    """The three published tables, with the clusters that come on top there."""
    assert recycled_count(before - kept) // 10 + 1 == clustered, "as in the paper: the number kept is fixed"
    assert cluster_count(before, kept + clustered) == clustered, "as here: the number of survivors is fixed"


def test_counts_of_every_quota() -> None:
    for tokens in (1, 2, 3, 7, 16, 60, 151):
        assert cluster_count(tokens, 0) == 0
        for quota in range(1, tokens + 1):
            alone, pool, made = literal_counts(tokens, quota)
            assert cluster_count(tokens, quota) == made == quota - alone
            assert made <= pool <= tokens - alone
            assert alone >= 1


@pytest.mark.parametrize("seed", range(4))
def test_raters(seed: int) -> None:
    """Ragged samples, padded on the left; text before and between images is no candidate."""
    noise = torch.Generator().manual_seed(seed)
    layouts = ["ttvvvttvvtttttttt", "___vtttttt", "____ttvvvvvvvt", "_vvtvvv", "___tvtt"]
    width = max(map(len, layouts))
    layouts = [layout.rjust(width, "_") for layout in layouts]
    states = torch.randn(len(layouts), width, 6, generator=noise)
    visual, text = (torch.tensor([[c == kind for c in layout] for layout in layouts]) for kind in "vt")
    for most in (8, width):
        is_rater = raters(states, visual, text, most)
        for row, layout in enumerate(layouts):
            end = layout.rindex("v") + 1
            images = [states[row, i].tolist() for i in range(width) if layout[i] == "v"]
            behind = states[row, end:].double().tolist()
            wanted = [end + i for i in literal_raters(images, behind)] if behind else []
            assert is_rater[row].nonzero()[:, 0].tolist() == wanted


def test_equal_text_rates_together() -> None:
    states = torch.ones(1, 6, 4)
    visual, text = torch.tensor([[True, True, False, False, False, False]]), torch.tensor([[False] * 2 + [True] * 4])
    assert raters(states, visual, text, 4)[0].tolist() == [False, False, True, True, True, True]


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_recycling(seed: int, exact: bool) -> None:
    """Problems of several sizes; exact vectors are duplicates, and their scores tie, too."""
    noise = torch.Generator().manual_seed(seed)
    sizes, quotas = [70, 33, 5, 1, 12, 0], [20, 30, 2, 1, 12, 0]
    states = exact_vectors(6 * 70, 9, seed).view(6, 70, 16) if exact else torch.randn(6, 70, 8, generator=noise)
    scores = torch.randint(0, 12, (6, 70), generator=noise).float() if exact else torch.rand(6, 70, generator=noise)
    plan = [literal_counts(*pair) for pair in zip(sizes, quotas, strict=True)]
    valid = torch.arange(70) < torch.tensor(sizes)[:, None]
    counts = torch.tensor(plan).unbind(1)
    keep, merged, _ = recycle(
        states, scores.masked_fill(~valid, -torch.inf), *counts, max_pool=max(pool for _, pool, _ in plan)
    )
    for row, (size, quota) in enumerate(zip(sizes, quotas, strict=True)):
        vectors = states[row, :size].double().tolist()
        expected = literal_selection(scores[row, :size].tolist(), vectors, quota) if quota else {}
        assert keep[row].nonzero()[:, 0].tolist() == sorted(expected)
        for place in range(size):
            wanted = expected.get(place, vectors[place])
            assert merged[row, place].tolist() == pytest.approx(wanted, abs=1e-5)


def test_nothing_waits_for_the_device() -> None:
    """The meta device has no values: whatever asks for one raises."""
    states, mask = torch.empty(2, 9, 4, device="meta"), torch.empty(2, 9, dtype=torch.bool, device="meta")
    counts = torch.empty(2, dtype=torch.long, device="meta")
    assert raters(states, mask, mask, 5).shape == (2, 9)
    assert recycle(states, states[:, :, 0], counts, counts, counts, 3)[1].shape == (2, 9, 4)


# ---- the engine ----------------------------------------------------------------------------------------------------


def replayed(model: Any, inputs: dict[str, Tensor], layers: tuple[int, ...], states: dict[int, Tensor]) -> Any:
    """An eager run of the whole sequence in which tokens are dropped by masks, and merged states put in by hooks.

    Args:
        states: Layer -> what enters it, ``[batch, seq, dim]``, NaN where a token has been dropped.

    Returns:
        What enters each layer, and its attention map.
    """
    entered: dict[int, Tensor] = {}
    gone: list[Tensor] = []

    def enter(layer: int) -> Any:
        def hook(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
            hidden = args[0] if args else kwargs["hidden_states"]
            if layer in states:
                dead = states[layer].isnan().any(-1)
                gone.append(dead)
                hidden = torch.where(dead[:, :, None], hidden, states[layer])
            entered[layer] = hidden
            mask = kwargs["attention_mask"]
            for dead in gone:
                mask = mask.masked_fill(dead[:, None, None, :], torch.finfo(mask.dtype).min)
            return (hidden,), {**{k: v for k, v in kwargs.items() if k != "hidden_states"}, "attention_mask": mask}

        return hook

    modules = model.get_decoder().layers
    hooks = [module.register_forward_pre_hook(enter(i), with_kwargs=True) for i, module in enumerate(modules)]
    with torch.no_grad():
        maps = model(**inputs, output_attentions=True).attentions
    for hook in hooks:
        hook.remove()
    return entered, maps


@pytest.mark.parametrize(
    ("name", "variant", "padding"),
    [
        ("llava", "image", "left"),
        ("llava", "multi", "right"),
        ("llava", "ragged", "left"),
        ("llava_qwen3", "ragged", "left"),
        ("qwen2_5_vl", "multi", "left"),
        ("internvl", "multi", "left"),
    ],
)
@pytest.mark.parametrize("recycles", [True, False])
def test_every_stage_keeps_and_clusters_what_the_definition_says(
    name: str, variant: Any, padding: Any, recycles: bool
) -> None:
    recording = record(name, variant, padding, batch=3)
    model = recording.model
    layers, tokens = ((1, 2, 3), (13, 9, 4)) if len(recording.layer_inputs) > 3 else ((1, 2), (11, 5))
    alive = [[list(image) for image in images] for images in recording.image_positions]
    embeddings = recording.layer_inputs[0]
    judges = []
    for sample, images in enumerate(recording.image_positions):
        visual = [p for image in images for p in image]
        behind = [p for p in recording.text_positions[sample] if p > max(visual)]
        rows = [embeddings[sample, behind].tolist(), embeddings[sample, visual].tolist()]
        judges.append([behind[i] for i in literal_raters(rows[1], rows[0])])
        assert 0 < len(judges[-1]) < len(behind)
    eager = CASES[name].build("eager")
    states: dict[int, Tensor] = {}
    expected: list[list[list[int]]] = []
    for layer, count in zip(layers, tokens, strict=True):
        entered, maps = replayed(eager, recording.inputs, layers, states)
        after = entered[layer].clone()
        for sample, images in enumerate(alive):
            rows = maps[layer - 1][sample].double().mean(0)[judges[sample]].mean(0)
            sizes = [len(image) for image in images]
            quotas = sizes if sum(sizes) <= count else apportion(count, sizes)
            for number, (image, quota) in enumerate(zip(images, quotas, strict=True)):
                scores, vectors = [float(rows[p]) for p in image], after[sample, image].double().tolist()
                if recycles:
                    survivors = literal_selection(scores, vectors, quota)
                else:
                    ranked = sorted(range(len(image)), key=lambda i: (-scores[i], i))
                    survivors = {i: vectors[i] for i in ranked[:quota]}
                for i, position in enumerate(image):
                    after[sample, position] = torch.tensor(survivors.get(i, [math.nan] * after.shape[2]))
                images[number] = [image[i] for i in sorted(survivors)]
        states[layer] = after
        expected.append([[p for image in images for p in image] for images in alive])
    entered, _ = replayed(eager, recording.inputs, layers, states)

    got: dict[int, Tensor] = {}
    with torch.no_grad(), tp.apply(model, method(layers, tokens, recycle=recycles)) as run:
        hooks = [
            model.get_decoder()
            .layers[layer]
            .register_forward_pre_hook(
                lambda module, args, kwargs, layer=layer: got.update({layer: args[0]}), with_kwargs=True
            )
            for layer in layers
        ]
        model(**recording.inputs)
        for hook in hooks:
            hook.remove()
    for stage, wanted, layer in zip(run.stages, expected, layers, strict=True):
        assert [[int(p) for p in row if p >= 0] for row in stage.kept] == wanted
        assert stage.rows is not None
        for sample, positions in enumerate(stage.rows.tolist()):
            for row, position in enumerate(positions):
                if position in wanted[sample] or position in recording.text_positions[sample]:
                    ours, theirs = got[layer][sample, row], entered[layer][sample, position]
                    assert torch.allclose(ours, theirs, atol=2e-4, rtol=1e-4)


def test_what_is_generated_does_not_depend_on_the_batch() -> None:
    """Greedy decoding after three stages: ragged samples together, and each of them alone."""
    recording = record("llava", "ragged", batch=3)
    made = method((1, 2, 3), (13, 9, 4))
    pixels = recording.inputs["pixel_values"].split([len(images) for images in recording.image_positions])
    with torch.no_grad(), tp.apply(recording.model, made):
        together = recording.model.generate(**recording.inputs, max_new_tokens=6)[
            :, recording.inputs["input_ids"].shape[1] :
        ]
        for sample, own in enumerate(pixels):
            real = recording.inputs["attention_mask"][sample].bool()
            ids = recording.inputs["input_ids"][sample][real][None]
            alone = recording.model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=own, max_new_tokens=6
            )
            assert alone[0, ids.shape[1] :].tolist() == together[sample].tolist()


def test_a_prompt_that_ends_with_its_image_is_rated_by_its_last_token() -> None:
    """At later stages, too, where the image's last token may be gone."""
    recording = record("llava", "image")
    end = max(recording.image_positions[0][0]) + 1
    inputs = {**recording.inputs, **{key: recording.inputs[key][:1, :end] for key in ("input_ids", "attention_mask")}}
    inputs["pixel_values"] = inputs["pixel_values"][:1]
    with torch.no_grad(), tp.apply(recording.model, method((1, 2, 3), (9, 5, 2))) as run:
        recording.model(**inputs)
    assert [len(stage.kept[0]) for stage in run.stages] == [9, 5, 2]


def test_it_is_refused_before_the_first_layer() -> None:
    recording = record("llava")
    with (
        pytest.raises(tp.errors.LayerError, match="SparseVLM reads attention of the layer before layer 0"),
        tp.apply(recording.model, method((0,), (5,))),
    ):
        pytest.fail("the block was entered")


def test_published_defaults() -> None:
    """LLaVA-1.5-7B's setting for 192 tokens: after layers 2, 6 and 15, 300 + 9, 200 + 4 and 110 + 3 of 576."""
    made = tp.load_method("sparsevlm")
    assert made.pruner == SparseVLM(recycle=True)
    assert made.layers.select(SelectorContext("llava", 32)).layers == (3, 7, 16)
    assert made.budget.keep(576, Schedule((3, 7, 16), 32)) == (309, 204, 113)
