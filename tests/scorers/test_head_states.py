"""Scorers of a token's states by head, at the vision tower: against states that hooks of the test's own record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import tokenprune as tp
from tests.adapters.test_vision_families import SOURCES, built, by_head
from tests.ops.test_entropy import literal
from tests.support.looking import looking
from tests.support.tiny import CASES
from tests.support.tiny.core import TRANSFORMERS
from tests.support.tiny.qwen import IMAGE
from tests.support.tower import output_of
from tokenprune.adapters import adapter_for
from tokenprune.adapters.llava import LlavaAdapter
from tokenprune.core.tunable import tunable_fields, variants
from tokenprune.errors import ConfigError, LayerError, ScoreError, UnsupportedFeatureError, UnsupportedModelError
from tokenprune.flops.decoder import Shape
from tokenprune.flops.vision import TowerShape
from tokenprune.ops.entropy import matrix_entropy
from tokenprune.ops.vision import StateSource, TowerLayer
from tokenprune.pruners.topk import TopK
from tokenprune.scorers.base import Scorer
from tokenprune.scorers.energy import Energy
from tokenprune.scorers.head_states import HeadStates
from tokenprune.scorers.matrix_entropy import MatrixEntropy
from tokenprune.scorers.norm import Norm
from tokenprune.signals.context import PruneContext
from tokenprune.signals.signal_reader import TowerLayerNumber
from tokenprune.testing import TowerTensors, make_context

LLAVA = CASES["llava"]
FIRST = {"name": "fixed", "layers": [0]}


def energy_of(token: Tensor) -> float:
    """The definition, written out."""
    heads, dim = token.shape
    total = 0.0
    for d in range(dim):
        mean = sum(float(token[h, d]) for h in range(heads)) / heads
        total += sum((float(token[h, d]) - mean) ** 2 for h in range(heads))
    return total


def norm_of(token: Tensor) -> float:
    return sum(float(value) ** 2 for value in token.flatten()) ** 0.5


def how(scorer: Scorer) -> tp.Method:
    """Five tokens by the score, before the language model."""
    return tp.Method(layers=FIRST, pruner=TopK(scorer=scorer), budget={"name": "keep_count", "tokens": 5})


def staged(pruner: TopK, layers: Sequence[int] = (0,)) -> tp.Method:
    """A half of the tokens at the first stage, and a quarter behind a second one."""
    budget = {"name": "keep_schedule", "ratios": [0.5, 0.25][: len(layers)]}
    return tp.Method(layers={"name": "fixed", "layers": list(layers)}, pruner=pruner, budget=budget)


def kept(model: Any, inputs: dict[str, Tensor], scorer: Scorer) -> list[list[int]]:
    """Positions that each sample keeps, counted from its first token after the padding."""
    with torch.no_grad(), tp.apply(model, how(scorer)) as run:
        model(**inputs)
    starts = (inputs["attention_mask"] == 0).sum(1).tolist()
    return [[int(p) - start for p in row if p >= 0] for row, start in zip(run.stages[0].kept, starts, strict=True)]


def tower_states(model: Any, inputs: dict[str, Tensor], layer: int) -> dict[str, list[Tensor]]:
    """States of every patch of all images in a row, ``[heads, head_dim]`` each."""
    tower = model.model.vision_tower
    states = by_head(model, getattr(tower, "vision_model", tower).encoder.layers[layer], inputs, 4)
    return {name: list(values[:, 1:].flatten(0, 1)) for name, values in states.items()}  # without the class token


def best(inputs: dict[str, Tensor], scores: list[float], count: int) -> list[list[int]]:
    """The best positions of each sample of one image; ties go to the earlier one."""
    chosen, rest = [], list(scores)
    for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True):
        start = int((mask == 0).sum())
        where = [int(p) - start for p in (ids == IMAGE).nonzero()[:, 0]]
        mine = dict(zip(where, rest, strict=False))
        rest = rest[len(where) :]
        chosen.append(sorted(sorted(where, key=lambda p: (-mine[p], p))[:count]))
    assert not rest
    return chosen


# ---- through the engine ------------------------------------------------------------------------------------------


def scores_in(model: Any, inputs: dict[str, Tensor], scorer: HeadStates, layers: Sequence[int] = (0,)) -> list[Tensor]:
    """Scores of the visual tokens at every stage, ``[batch, n_visual]``."""
    pruner, seen = looking(scorer, scorer.score)
    ratios = [0.5, 0.25][: len(layers)]
    budget = {"name": "keep_schedule", "ratios": ratios}
    with (
        torch.no_grad(),
        tp.apply(model, tp.Method(layers={"name": "fixed", "layers": list(layers)}, pruner=pruner, budget=budget)),
    ):
        model(**inputs)
    return seen


@pytest.mark.parametrize("layer", [0, -1])
@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("variant", ["image", "ragged"])
def test_scores_of_the_tower_are_their_definitions(variant: Any, source: StateSource, layer: int) -> None:
    """Left padding; samples of one image, or of different numbers of images."""
    model = built("llava")
    inputs = LLAVA.batch(model, 3, "left", variant=variant).inputs
    states = tower_states(model, inputs, layer)[source]
    common: dict[str, Any] = {"source": source, "tower_layer": layer}
    wanted: list[tuple[HeadStates, list[float]]] = [
        (Norm(**common), [norm_of(token) for token in states]),
        (Norm(**common, keep="small"), [-norm_of(token) for token in states]),
        (Energy(**common), [energy_of(token) for token in states]),
        (Energy(**common, keep="small"), [-energy_of(token) for token in states]),
        (MatrixEntropy(**common), [literal(token, True) for token in states]),
        (MatrixEntropy(**common, normalization="none"), [literal(token, False) for token in states]),
    ]
    sizes = (inputs["input_ids"] == IMAGE).sum(1).tolist()
    for scorer, scores in wanted:
        (seen,) = scores_in(model, inputs, scorer)
        found = [float(value) for row, size in zip(seen, sizes, strict=True) for value in row[:size]]
        assert found == pytest.approx(scores, rel=1e-4, abs=1e-4)
        if variant == "image":
            assert kept(model, inputs, scorer) == best(inputs, scores, 5)


@pytest.mark.parametrize("source", SOURCES)
def test_energy_of_the_language_model(source: StateSource) -> None:
    """Layer K-1's own states, grouped queries and all."""
    model = LLAVA.build()
    inputs = LLAVA.batch(model, 2, "left").inputs
    block = model.get_decoder().layers[1]
    heads = 4 if source in ("query", "hidden") else 2
    module = block if source == "hidden" else getattr(block.self_attn, f"{source[0]}_proj")
    states = output_of(model, module, inputs).unflatten(-1, (heads, -1))
    (found,) = scores_in(model, inputs, Energy(source=source), [2])
    for sample, ids in enumerate(inputs["input_ids"]):
        tokens = states[sample][ids == IMAGE]
        assert found[sample].tolist() == pytest.approx([energy_of(token) for token in tokens], rel=1e-4)


@pytest.mark.parametrize("source", SOURCES)
def test_neither_text_nor_the_other_samples_matter(source: StateSource) -> None:
    """The same pictures before another text, padded on the other side, and alone."""
    model = built("llava")
    inputs = LLAVA.batch(model, 3, "left").inputs
    scorer = MatrixEntropy(source=source, tower_layer=0)
    (scores,) = scores_in(model, inputs, scorer)
    expected = kept(model, inputs, scorer)
    visual = inputs["input_ids"] == IMAGE
    other = {**inputs, "input_ids": torch.where(visual, IMAGE, (inputs["input_ids"] * 7 + 3) % 140)}
    assert torch.equal(scores_in(model, other, scorer)[0], scores)
    assert kept(model, other, scorer) == expected
    for sample in range(3):
        start = int((inputs["attention_mask"][sample] == 0).sum())
        longer = torch.cat([torch.tensor([5, 6, 7]), inputs["input_ids"][sample, start:], torch.tensor([9, 9])])[None]
        alone = {"input_ids": longer, "attention_mask": torch.ones_like(longer)}
        alone["pixel_values"] = inputs["pixel_values"][sample : sample + 1]
        size = int(visual[sample].sum())
        assert torch.allclose(scores_in(model, alone, scorer)[0][0], scores[sample, :size], atol=1e-5)
        assert [[p - 3 for p in row] for row in kept(model, alone, scorer)] == [expected[sample]]


def test_a_second_stage_reads_the_tokens_that_are_left() -> None:
    model = built("llava")
    inputs = LLAVA.batch(model, 2, "left").inputs
    scorer = Energy(source="value", tower_layer=-1)
    places: list[Tensor] = []

    def look(ctx: PruneContext) -> Tensor:
        places.append(ctx.positions)
        return scorer.score(ctx)

    pruner, seen = looking(scorer, look)
    budget = {"name": "keep_schedule", "ratios": [0.5, 0.25]}
    with (
        torch.no_grad(),
        tp.apply(model, tp.Method(layers={"name": "fixed", "layers": [0, 2]}, pruner=pruner, budget=budget)),
    ):
        model(**inputs)
    for sample in range(2):
        whole = dict(zip(places[0][sample].tolist(), seen[0][sample].tolist(), strict=True))
        assert len(places[1][sample]) < len(whole)
        assert [whole[p] for p in places[1][sample].tolist()] == seen[1][sample].tolist()


@pytest.mark.parametrize("beams", [1, 2, 3])
def test_generate_keeps_what_a_forward_keeps(beams: int) -> None:
    if beams > 1 and TRANSFORMERS < (5, 23):
        pytest.skip("repeats images one by one, but samples whole")
    model = built("llava")
    inputs = LLAVA.batch(model, 3, "left", variant="ragged").inputs
    with torch.no_grad(), tp.apply(model, how(MatrixEntropy(source="value", tower_layer=-1))) as run:
        model(**inputs)
        expected = run.stages[0].kept
        model.generate(**inputs, max_new_tokens=2, do_sample=False, num_beams=beams)
        assert torch.equal(run.stages[0].kept, expected.repeat_interleave(beams, dim=0))


@pytest.mark.parametrize("name", ["llava", "qwen2_vl"])
def test_values_are_observed_for_components_that_declare_them_only(name: str) -> None:
    model = built(name)
    site = adapter_for(model).tower_site(-1)
    assert site.value is not None

    def hooked(scorer: Scorer) -> int:
        with tp.apply(model, how(scorer)):
            return len(site.value._forward_hooks)  # type: ignore[union-attr]

    more = hooked(Norm(source="value", tower_layer=-1)) - hooked(Norm(source="hidden", tower_layer=-1))
    assert more == 1
    assert not site.value._forward_hooks


def test_2d_rotary_embedding_leaves_the_entropy_of_a_patch_alone() -> None:
    """Qwen2-VL rotates all heads of a patch alike. Patches of one token differ, so a token is read before rotation."""
    model = built("qwen2_vl", "eager")
    inputs = CASES["qwen2_vl"].batch(model, 2, "left").inputs
    module = model.model.visual.blocks[-1].attn
    made = output_of(model, module.qkv, inputs)
    angles: list[Any] = []
    hook = module.register_forward_pre_hook(
        lambda m, args, kwargs: angles.append(kwargs["position_embeddings"]), with_kwargs=True
    )
    with torch.no_grad():
        model(**inputs)
    hook.remove()
    layer = (
        adapter_for(model)
        .tower_site(-1)
        .read(made.float(), made.float(), angles[0], {"grid_thw": inputs["image_grid_thw"]})
    )
    assert layer.plain_query is not None
    assert not torch.allclose(layer.query, layer.plain_query, atol=1e-2)
    assert torch.allclose(matrix_entropy(layer.query), matrix_entropy(layer.plain_query), atol=1e-5)
    before = matrix_entropy(layer.states("query"))
    after = matrix_entropy(replace(layer, plain_query=None).states("query"))
    assert not torch.allclose(before, after, atol=1e-2)


# ---- what is declared, and refused -------------------------------------------------------------------------------


class Reads(Scorer):
    """Declares one layer, and reads another one or other states."""

    layer: TowerLayerNumber = -1
    read: int = -1
    source: str = "query"

    @property
    def needs(self) -> frozenset[str]:
        return frozenset()

    def score(self, ctx: PruneContext) -> Tensor:
        return ctx.vision(self.read).states(self.source).sum((2, 3))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"read": 0}, "read layer 0 of the vision tower, which it does not declare; add 0 to its vision_layers"),
        ({"source": "value"}, "value states of the vision tower were not recorded; add 'tower_value' to the"),
        ({"source": "keys"}, "keys states of the vision tower do not exist; read query, key, value, hidden"),
    ],
)
def test_what_is_not_declared_cannot_be_read(fields: dict[str, Any], words: str) -> None:
    model = built("llava")
    inputs = LLAVA.batch(model, 2, "left").inputs
    with torch.no_grad(), tp.apply(model, how(Reads(**fields))), pytest.raises(ScoreError) as caught:
        model(**inputs)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_the_scorers_declare() -> None:
    """Nothing of the language model where the tower is read."""
    for kind in (MatrixEntropy, Norm, Energy):
        for source in SOURCES:
            assert kind(source=source).needs == {source}
            assert kind(source=source).vision_layers == frozenset()
            tower = kind(source=source, tower_layer=-3)
            assert tower.needs == ({"tower_value"} if source == "value" else frozenset())
            assert tower.vision_layers == {-3}
            assert not tower.requires_class_token
    assert MatrixEntropy(source="hidden", final_norm=True).needs == {"hidden", "final_norm"}
    assert TopK(scorer=Energy(tower_layer=2)).vision_layers == {2}


def test_the_final_norm_is_the_language_models() -> None:
    with pytest.raises(ConfigError, match="layer 0 of the vision tower: leave out final_norm or tower_layer"):
        MatrixEntropy(source="hidden", final_norm=True, tower_layer=0)


def test_layers_and_towers_that_cannot_serve_are_refused_up_front(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(model: Any, scorer: Scorer, kind: type[Exception], words: str) -> None:
        with pytest.raises(kind, match=words), tp.apply(model, how(scorer)):
            pass

    refused(built("llava"), Energy(tower_layer=7), LayerError, "layer 7 of a vision tower of 2 layers")
    refused(CASES["aya_vision"].build(), Energy(tower_layer=0), UnsupportedModelError, "vision tower's patches")
    own = LlavaAdapter.tower_site
    monkeypatch.setattr(LlavaAdapter, "tower_site", lambda self, layer: replace(own(self, layer), value=None))
    with tp.apply(built("llava"), how(Energy(tower_layer=0))):
        pass
    values = Energy(source="value", tower_layer=0)
    refused(built("llava"), values, UnsupportedModelError, "vision tower of 'llava' has no value states")


def test_states_that_the_heads_do_not_divide() -> None:
    states = torch.randn(1, 4, 3, 2)
    layer = TowerLayer(states, states, 0, 1.0, output=torch.randn(1, 4, 8))
    assert layer.states("query").shape == (1, 4, 3, 2)
    with pytest.raises(UnsupportedFeatureError, match="width 8 cannot be split into the vision tower's 3 heads"):
        layer.states("hidden")


# ---- without a model ---------------------------------------------------------------------------------------------


def test_given_tensors() -> None:
    """``make_context`` takes states of the tower, of all rows; unequal sizes, text between."""
    states = torch.randn(2, 6, 3, 4, generator=torch.Generator().manual_seed(0))
    visual = torch.tensor([[False, True, True, False, True, False], [True] * 5 + [False]])
    one = torch.zeros(2, 6)
    tower = {-1: TowerTensors(one, one, states.mean(2), states.flatten(2), by_head={"hidden": states})}
    ctx = make_context(torch.zeros(2, 6, 2), visual, tower=tower, layer=0, needs=())
    scores = Energy(source="hidden", tower_layer=-1).score(ctx)
    for sample in range(2):
        wanted = [energy_of(token) for token in states[sample][visual[sample]]]
        assert scores[sample, : len(wanted)].tolist() == pytest.approx(wanted, rel=1e-5)
    with pytest.raises(ScoreError, match=r"this tower layer has no key states; pass TowerTensors\(..., by_head="):
        Energy(source="key", tower_layer=-1).score(ctx)


def test_by_hand() -> None:
    """Heads (1, 2) and (3, 6): their mean is (2, 4), and each is 1 and 2 away from it."""
    query = torch.tensor([[1.0, 2.0], [3.0, 6.0]]).view(1, 1, 2, 2)
    ctx = make_context(torch.zeros(1, 1, 4), query=query)
    assert Energy().score(ctx).tolist() == [[10.0]]
    assert Energy(keep="small").score(ctx).tolist() == [[-10.0]]
    assert Energy().score(make_context(torch.zeros(1, 1, 4), query=query * 0 + 5)).tolist() == [[0.0]]
    whole = make_context(torch.tensor([[[1.0, 2.0, 3.0, 6.0]]]), num_heads=2)
    assert Energy(source="hidden").score(whole).tolist() == [[10.0]]


def test_nothing_waits_for_the_device() -> None:
    """The meta device has no values: whatever asks for one raises."""
    states = torch.empty(2, 5, 4, 8, device="meta")
    flat = torch.empty(2, 5, device="meta")
    by_head = dict.fromkeys(SOURCES, states)
    tower = {0: TowerTensors(flat, flat, states.mean(2), states.flatten(2), by_head=by_head)}
    ctx = make_context(torch.empty(2, 5, 4, device="meta"), sizes=[[5], [5]], tower=tower)
    for source in SOURCES:
        for kind in (MatrixEntropy, Norm, Energy):
            assert kind(source=source, tower_layer=0).score(ctx).shape == (2, 5)


# ---- tuning and cost ---------------------------------------------------------------------------------------------


def test_tower_layers_are_tunable() -> None:
    assert tunable_fields(Energy(), 24)["tower_layer"] == (None, 0, 8, 16, 23)
    assert tunable_fields(Energy(), 6)["tower_layer"] == (None, 0, 2, 4, 5)
    assert tunable_fields(Energy(tower_layer=-1), 2)["tower_layer"] == (-1, 0)
    assert tunable_fields(Energy(), None)["tower_layer"] == (None,)
    assert len(variants(Energy(), ["tower_layer", "source"], 6)) == 5 * 4
    normed = variants(MatrixEntropy(source="hidden", final_norm=True), ["tower_layer"], 6)
    assert [variant.tower_layer for variant in normed] == [None]  # the final norm is no tower's


def test_cost_by_hand() -> None:
    """Width 96, 4 query heads and 2 key heads of 16; a tower of width 40 with 5 heads of 6."""
    decoder = Shape(96, 4, 16, 2, 8, 8, 6)
    whole = replace(decoder, tower=TowerShape(40, 5, 6))
    at: dict[str, Any] = {"tower_layer": 0}
    cases: list[tuple[dict[str, Any], int, int]] = [
        ({"source": "query"}, 4, 16),
        ({"source": "key"}, 2, 16),
        ({"source": "value"}, 2, 16),
        ({"source": "hidden"}, 4, 24),
        ({"source": "query", **at}, 5, 6),
        ({"source": "value", **at}, 5, 6),
        ({"source": "hidden", **at}, 5, 8),
    ]
    for fields, heads, dim in cases:
        assert Norm(**fields).flops(whole, 7, 50) == 7 * 2 * heads * dim
        assert Energy(**fields).flops(whole, 7, 50) == 7 * 4 * heads * dim
        gram, eigenvalues = 2 * heads**2 * dim, 4 * heads**3 // 3
        assert MatrixEntropy(**fields).flops(whole, 7, 50) == 7 * (gram + eigenvalues)
    with pytest.raises(UnsupportedModelError, match="width and the heads of the vision tower are unknown"):
        Norm(**at).flops(decoder, 7, 50)


@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "mistral3", "internvl", "gemma3"])
def test_sizes_of_the_tower_are_those_of_its_states(name: str) -> None:
    model = built(name)
    inputs = CASES[name].batch(model, 1).inputs
    for source in SOURCES:
        scorer = Norm(source=source, tower_layer=0)
        shapes, seen = looking(scorer, lambda ctx, source=source: ctx.vision(0).states(source).shape[2:])  # type: ignore[misc]
        with torch.no_grad(), tp.apply(model, staged(shapes)):
            model(**inputs)
        assert scorer.sizes(Shape.of_stage(model.config, 0)) == tuple(seen[0])


def test_the_share_of_an_image_counts_its_own_tokens_alone() -> None:
    """Two images of one sample, one of another, and padding: each image as if it were alone."""
    noise = torch.Generator().manual_seed(0)
    query = torch.randn(2, 12, 4, 8, generator=noise)
    hidden = torch.randn(2, 12, 32, generator=noise)
    visual = torch.ones(2, 12, dtype=torch.bool)
    visual[1, 7:] = False
    images = torch.zeros(2, 12, dtype=torch.long)
    images[0, 5:] = 1
    ctx = make_context(hidden, visual, images=images, query=query, num_heads=4)
    scores = MatrixEntropy(normalization="image").checked(ctx)
    for sample, rows in ((0, slice(0, 5)), (0, slice(5, 12)), (1, slice(0, 7))):
        alone = make_context(hidden[[sample], rows], query=query[[sample], rows], num_heads=4)
        expected = MatrixEntropy(normalization="image").score(alone)[0]
        assert torch.allclose(scores[sample, rows], expected.to(scores.dtype), rtol=1e-6)
