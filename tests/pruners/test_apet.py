"""ApET against a literal choice, overwriting and merging, token by token, in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import tokenprune as tp
from tests.ops.test_rebuild import literal_errors, literal_points
from tests.pruners.test_visionzip import pruned_states
from tests.support.literal import cosine, exact_vectors, record
from tests.support.tower import features
from tokenprune.budgets.base import Schedule
from tokenprune.ops.rebuild import random_shares
from tokenprune.pruners.apet import Apet
from tokenprune.pruners.stages import Stages
from tokenprune.selectors.relative import Relative
from tokenprune.testing import TowerTensors, make_context

Kept = dict[int, list[float]]


def literal(
    compared: list[Tensor], states: list[list[float]], count: int, share: float, basis: int = 10, **fields: Any
) -> Kept:
    """The kept tokens, with what they become."""
    tokens = range(len(states))
    if count == len(tokens):  # nothing is lost
        return dict(enumerate(states))
    points = literal_points(torch.stack(compared), share, basis)
    errors = torch.tensor(literal_errors(torch.stack(compared), points)).float().tolist()
    ranked = sorted(tokens, key=lambda i: (-errors[i], i))[:count]
    replaced = min(basis, count - 1)
    own, others = ranked[: count - replaced], ranked[count - replaced :]
    groups: dict[int, list[int]] = {i: [i] for i in own}
    for token in tokens:
        if token not in ranked:
            groups[max(own, key=lambda t: (cosine(compared[token], compared[t]), -t))].append(token)
    kept = {
        i: [sum(states[j][c] for j in group) / len(group) for c in range(len(states[0]))] for i, group in groups.items()
    }
    blend = fields.get("blend", 1.0)
    for token, point in zip(sorted(others) if fields.get("order") != "error" else others, points, strict=False):
        kept[token] = [blend * a + (1 - blend) * b for a, b in zip(states[point], states[token], strict=True)]
    return kept | {i: states[i] for i in others if i not in kept}


def check(states: Tensor, count: int, **fields: Any) -> None:
    """One image, before a layer in the language model, and in the tower with a projector that doubles."""
    share = float(random_shares([[1]], [0], fields.get("seed", 0), 1))
    expected = literal(list(states), states.double().tolist(), count, share, **fields)
    doubled = TowerTensors(states[None, :, 0], states[None, :, 0], states[None], states[None], lambda x: 2 * x)
    for compare, layer, factor in (("hidden", 2, 1), ("tower", 0, 2)):
        hidden = states[None] if compare == "hidden" else 2 * states[None]
        ctx = make_context(hidden, keep=count, layer=layer, num_layers=4, tower={-2: doubled})
        made = Apet(compare=compare, **fields).select(ctx)  # type: ignore[arg-type]
        assert made.keep[0].nonzero()[:, 0].tolist() == sorted(expected)
        assert made.hidden is not None
        for i, vector in expected.items():
            assert made.hidden[0, i].tolist() == pytest.approx([factor * value for value in vector], abs=1e-5)


@pytest.mark.parametrize("order", ["position", "error"])
@pytest.mark.parametrize(("basis", "blend"), [(4, 1.0), (10, 1.0), (10, 0.5)])
@pytest.mark.parametrize("seed", range(3))
def test_random_tokens(seed: int, basis: int, blend: float, order: str) -> None:
    """Counts below, at and above the size of the basis; so many that basis tokens are kept; and all tokens."""
    states = torch.randn(20, 12, generator=torch.Generator().manual_seed(seed))
    for count in (1, 2, 4, 5, 10, 11, 14, 20):
        check(states, count, basis=basis, blend=blend, order=order, seed=seed)


@pytest.mark.parametrize("tokens", [1, 3])
def test_fewer_tokens_than_the_basis(tokens: int) -> None:
    states = torch.randn(tokens, 6, generator=torch.Generator().manual_seed(0))
    for count in range(1, tokens + 1):
        check(states, count)


def test_duplicates_keep_the_earlier_position() -> None:
    for distinct in (1, 5):
        states = exact_vectors(14, distinct, 0)
        for count in (1, 3, 8):
            check(states, count, basis=2)


def test_merging_is_shown() -> None:
    """The picture of a prefill draws which token went where; tokens with a basis state take nothing in."""
    states = torch.randn(1, 20, 12, generator=torch.Generator().manual_seed(0))
    made = Apet(compare="hidden", basis=3).select(make_context(states, keep=8))
    assert made.merged is not None
    targets = made.merged[0][~made.keep[0]]
    assert made.keep[0, targets].all()
    assert (made.merged[0][made.keep[0]] == -1).all()
    assert len(set(targets.tolist())) <= 5


def test_row_separators_are_neither_in_the_basis_nor_merged() -> None:
    """Two of them, whose features are 0: they keep their states, and are kept only if all patches are."""
    states = 5 + torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
    states[[5, 11]] = 0
    hidden = torch.cat([2 * states, torch.ones(12, 1)], 1)[None]
    tower = TowerTensors(
        states[None, :, 0],
        states[None, :, 0],
        states[None],
        states[None],
        lambda x: torch.cat([2 * x, torch.ones_like(x[..., :1])], -1),
    )
    patches = [i for i in range(12) if i not in (5, 11)]
    share = float(random_shares([[1]], [0], 0, 1))
    expected = literal(list(states[patches]), states[patches].double().tolist(), 6, share, basis=2)
    made = Apet(basis=2).select(make_context(hidden, keep=6, layer=0, tower={-2: tower}))
    assert made.keep[0].nonzero()[:, 0].tolist() == sorted(patches[i] for i in expected)
    assert made.hidden is not None
    for i, vector in expected.items():
        assert made.hidden[0, patches[i]].tolist() == pytest.approx([*(2 * value for value in vector), 1], abs=1e-5)
    everything = Apet(basis=2).select(make_context(hidden, keep=12, layer=0, tower={-2: tower}))
    assert everything.hidden is not None
    torch.testing.assert_close(everything.hidden[0, [5, 11]], hidden[0, [5, 11]])


@pytest.mark.parametrize(
    ("name", "variant"),
    [("llava", "image"), ("llava", "multi"), ("llava", "ragged"), ("vipllava", "multi"), ("llava_qwen3", "ragged")],
)
@pytest.mark.parametrize(("tokens", "basis"), [(13, 3), (9, 10)])
def test_the_engine_keeps_and_merges_what_the_definition_says(name: str, variant: Any, tokens: int, basis: int) -> None:
    """Ragged batches, padded on the left, of prompts with several images of 16 tokens.

    Features are merged before the projector; in VipLLaVA, whose projector gets several layers, projected ones are.
    """
    recording = record(name, variant, batch=3)
    tower, before = features(recording, name, -2), name != "vipllava"
    shares = random_shares([[1] * len(images) for images in recording.image_positions], range(3), 0, 3).view(3, 3)
    projector = recording.model.model.multi_modal_projector
    method = {
        "layers": {"name": "fixed", "layers": [0]},
        "pruner": {"name": "apet", "basis": basis},
        "budget": {"name": "keep_count", "tokens": tokens},
    }
    rows, entered = pruned_states(recording, method)
    kept = recording.kept(method)
    for sample, images in enumerate(recording.image_positions):
        expected: Kept = {}
        for number, (image, count) in enumerate(zip(images, recording.quotas(sample, tokens), strict=True)):
            entering = [recording.layer_inputs[0][sample, position].tolist() for position in image]
            states = [row.tolist() for row in tower[sample][number]] if before else entering
            share = float(shares[sample, number])
            for i, vector in literal(tower[sample][number], states, count, share, basis).items():
                with torch.no_grad():
                    expected[image[i]] = projector(torch.tensor(vector)).tolist() if before else vector
        if sum(map(len, images)) <= tokens:
            continue  # nothing is pruned
        assert kept[sample] == sorted(expected)
        for position, state in zip(rows[sample], entered[sample], strict=True):
            if position in expected:
                assert state.tolist() == pytest.approx(expected.pop(position), abs=1e-5)
        assert not expected, "a kept token is not among the rows"


def test_nothing_waits_for_the_device() -> None:
    """The meta device has no values: whatever asks for one raises."""
    states = torch.empty(2, 9, 5, device="meta")
    visual = torch.ones(2, 9, dtype=torch.bool, device="meta")
    tower = TowerTensors(states[..., 0], states[..., 0], states, states, lambda x: x)
    for compare in ("hidden", "tower"):
        ctx = make_context(states, visual, keep=4, layer=0, sizes=[[9], [9]], tower={-2: tower})
        assert Apet(compare=compare, basis=3).select(ctx).keep.shape == (2, 9)  # type: ignore[arg-type]


def test_published_defaults() -> None:
    """96 of LLaVA-1.5's 576 tokens before the language model, and 32 from the middle on: 64 on average."""
    made = tp.load_method("apet")
    assert made.pruner == Stages(
        pruners=(Apet(basis=10, compare="tower", layer=-2, order="position"), Apet(compare="hidden", order="error"))
    )
    assert made.layers == Relative(depths=(0.0, 0.5))
    assert made.budget.keep(576, Schedule((0, 16), 32)) == (96, 32)
    published = tp.load_method("apet", model="LLaVA-1.5-7B")
    assert published.budget.keep(576, Schedule((0, 16), 32)) == (96, 32)
    assert published.positions == "renumbered"
