"""Contexts from plain tensors: components get the same from them as from a prefill, and mistakes are named."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any

import pytest
import torch
from torch import Tensor

import tokenprune as tp
from tests.support.literal import Recording, record
from tests.support.tower import attention, features
from tokenprune.errors import ConfigError, ScoreError, UnsupportedModelError
from tokenprune.ops.vision import TowerLayer
from tokenprune.pruners.base import Pruner
from tokenprune.pruners.dpp import Dpp
from tokenprune.pruners.max_min import MaxMin
from tokenprune.pruners.scope import Scope
from tokenprune.pruners.topk import TopK
from tokenprune.pruners.vidcom2 import VidCom2
from tokenprune.scorers.annotation import Annotation
from tokenprune.scorers.base import Scorer
from tokenprune.scorers.instruction import Instruction
from tokenprune.scorers.matrix_entropy import MatrixEntropy
from tokenprune.scorers.norm import Norm
from tokenprune.scorers.random import Random
from tokenprune.signals.context import PruneContext
from tokenprune.signals.signals import SIGNALS, WITH_TEXT
from tokenprune.testing import TowerTensors, make_context, tower_signals

LAYER, TOKENS = 2, 7
HIDDEN = torch.arange(24.0).view(2, 4, 3)
STATES = HIDDEN.view(2, 4, 1, 3)


class Recorder(Scorer):
    """Calls another scorer, and stores its scores and the visual mask."""

    scorer: Any
    scores: list[Any]

    @property
    def needs(self) -> frozenset[str]:
        needs: frozenset[str] = self.scorer.needs
        return needs

    def score(self, ctx: PruneContext) -> Tensor:
        scores: Tensor = self.scorer.score(ctx)
        self.scores.append((scores, ctx.visual_mask))
        return scores


def layer_states(recording: Recording) -> dict[str, Tensor]:
    """Query, key and value states of the layer before the stage, by forward hooks on its projections."""
    module = recording.model.get_decoder().layers[LAYER - 1].self_attn
    head_dim = module.head_dim
    states: dict[str, Tensor] = {}
    hooks = []
    for name in ("query", "key", "value"):

        def store(module: Any, args: Any, output: Tensor, name: str = name) -> None:
            states[name] = output.unflatten(-1, (-1, head_dim))

        hooks.append(getattr(module, f"{name[0]}_proj").register_forward_hook(store))
    with torch.no_grad():
        recording.model(**recording.inputs)
    for hook in hooks:
        hook.remove()
    return states


def on_rows(recording: Recording, values: Sequence[Sequence[Sequence[Any]]], fill: Any) -> Tensor:
    """Values of each image's tokens, by sample and image, on the rows of the sequence."""
    rows = [[fill] * recording.inputs["input_ids"].shape[1] for _ in values]
    for sample, images in enumerate(recording.image_positions):
        for number, positions in enumerate(images):
            for position, value in zip(positions, values[sample][number], strict=True):
                rows[sample][position] = value
    return torch.tensor(rows)


def context_of(recording: Recording, layer: int, **tensors: Any) -> PruneContext:
    """The context of a stage, from the tensors that hooks recorded."""
    numbers = [[[n] * len(image) for n, image in enumerate(images)] for images in recording.image_positions]
    images = on_rows(recording, numbers, -1)
    return make_context(
        recording.layer_inputs[layer].float(),
        images >= 0,
        images=images.clamp(min=0),
        keep=[recording.quotas(sample, TOKENS) for sample in range(len(images))],
        row_mask=recording.inputs["attention_mask"].bool(),
        layer=layer,
        num_heads=4,
        **tensors,
    )


@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("variant", ["image", "ragged"])
@pytest.mark.parametrize(
    "scorer",
    [Norm(source=s) for s in ("query", "key", "value", "hidden")]  # type: ignore[arg-type]
    + [MatrixEntropy(), Instruction(), Random(seed=3)],
    ids=repr,
)
def test_scores_are_those_of_a_prefill(scorer: Scorer, variant: Any, padding: Any) -> None:
    recording = record("llava", variant, padding, batch=3)
    recorder = Recorder(scorer=scorer, scores=[])
    method = {"layers": {"name": "fixed", "layers": [LAYER]}, "budget": {"name": "keep_count", "tokens": TOKENS}}
    recording.kept({**method, "pruner": TopK(scorer=recorder)})
    ((expected, mask),) = recorder.scores
    ctx = context_of(recording, LAYER, **layer_states(recording), needs=scorer.needs)
    assert torch.equal(ctx.visual_mask, mask)
    torch.testing.assert_close(scorer.checked(ctx)[mask], expected[mask])


def kept_positions(ctx: PruneContext, pruner: Pruner) -> list[list[int]]:
    """Positions in the unpruned sequence that a pruner keeps."""
    keep = pruner.select(ctx).keep
    return [positions[row].tolist() for positions, row in zip(ctx.positions, keep, strict=True)]


@pytest.mark.parametrize("variant", ["image", "multi", "ragged"])
@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize(
    "pruner",
    [TopK(scorer=Norm(source="hidden")), MaxMin(), Dpp(relevance=Instruction()), Scope()],
    ids=lambda p: type(p).__name__,
)
def test_selections_are_those_of_a_prefill(pruner: Pruner, layer: int, variant: Any) -> None:
    recording = record("llava", variant, batch=3)
    received = on_rows(recording, attention(recording, "llava", -2), 0.0).float()
    left = [[[row.tolist() for row in image] for image in images] for images in features(recording, "llava", -2)]
    states = on_rows(recording, left, [0.0] * len(left[0][0][0])).float()
    tower = {-2: TowerTensors(received, received, key=states, features=states)}
    ctx = context_of(recording, layer, needs=pruner.needs | {"text"}, tower=tower)
    method = {"layers": {"name": "fixed", "layers": [layer]}, "budget": {"name": "keep_count", "tokens": TOKENS}}
    assert kept_positions(ctx, pruner) == recording.kept({**method, "pruner": pruner})


def test_grids_are_those_of_a_prefill() -> None:
    """Images are numbered as frames of one video, whatever frame number each has on its own grid."""
    recording = record("llava", "multi", batch=2)
    places = [[[(0, i // 4, i % 4) for i in range(16)] for _ in images] for images in recording.image_positions]
    ctx = context_of(recording, 0, grid=on_rows(recording, places, (-1, -1, -1)))
    for sample, images in enumerate(recording.image_positions):
        expected = [number for number, image in enumerate(images) for _ in image]
        assert ctx.grid.frames[sample, : len(expected)].tolist() == expected
        assert (ctx.grid.frames[sample, len(expected) :] == -1).all()
    method = {"layers": {"name": "fixed", "layers": [0]}, "budget": {"name": "keep_count", "tokens": TOKENS}}
    assert kept_positions(ctx, VidCom2()) == recording.kept({**method, "pruner": VidCom2()})


def test_attention_is_causal_and_ignores_padding() -> None:
    """One head, one query row: a softmax over the rows that are no padding and not later."""
    ctx = make_context(HIDDEN, query=STATES, key=STATES, row_mask=torch.tensor([[False, True, True, True]] * 2))
    row = ctx.probe.rows(torch.tensor([[2], [2]]))[1, 0, 0]
    logits = (HIDDEN[1] @ HIDDEN[1, 2]) * 3**-0.5
    torch.testing.assert_close(row, torch.cat([torch.zeros(1), logits[1:3].softmax(0), torch.zeros(1)]))


def test_the_prompt_has_text_and_visual_tokens() -> None:
    visual = torch.tensor([[False, True, True, False], [False, False, True, False]])
    row_mask = torch.tensor([[True] * 4, [False, True, True, True]])
    prompt = make_context(HIDDEN, visual, row_mask=row_mask, embeddings=HIDDEN + 1).prompt
    assert torch.equal(prompt.embeddings, HIDDEN + 1)
    assert torch.equal(prompt.visual_mask, visual)
    assert prompt.text_mask.tolist() == [[True, False, False, True], [False, True, False, True]]
    assert torch.equal(prompt.on_rows(visual), visual)


def test_annotations_are_gathered_on_the_visual_axis() -> None:
    visual = torch.tensor([[False, True, True, False], [False, False, True, False]])
    ctx = make_context(HIDDEN, visual, annotations={"foreground": HIDDEN[:, :, 0]})
    assert Annotation().score(ctx).tolist() == [[3.0, 6.0], [18.0, 0.0]]


@pytest.mark.parametrize("name", ["query", "key", "value", "images", "visual", "row_mask"])
@pytest.mark.parametrize("rows", [3, 5])
def test_wrong_shapes_are_refused(name: str, rows: int) -> None:
    tensor = {"images": torch.zeros(2, rows, dtype=torch.long)}.get(name, torch.ones(2, rows, dtype=torch.bool))
    if name in ("query", "key", "value"):
        tensor = torch.zeros(2, rows, 1, 3)
    arguments: dict[str, Any] = {name: tensor}
    with pytest.raises(ConfigError, match=rf"{name} has shape \(2, {rows}.*pass a tensor of shape \[2, 4, \.\.\.\]"):
        make_context(HIDDEN, **arguments)


@pytest.mark.parametrize("keep", [[[1]], [[1], [1, 1]], [[1], []], [[1], [1], [1]]])
def test_keep_must_have_one_number_per_image(keep: list[list[int]]) -> None:
    with pytest.raises(ConfigError, match=r"for images of \[\[4\], \[4\]\] tokens.*one number per image"):
        make_context(HIDDEN, keep=keep)


def test_unknown_signals_are_refused() -> None:
    with pytest.raises(
        ConfigError,
        match=r"'keys'.*use any of annotations, attention, embeddings, entering, final_norm, grid, hidden, key,"
        r" previous, query, sample_ids, text, tower_value, value$",
    ):
        make_context(HIDDEN, needs={"keys"})


@pytest.mark.parametrize(
    ("read", "argument"),
    [
        (lambda ctx: ctx.query, "query=..."),
        (lambda ctx: ctx.key, "key=..."),
        (lambda ctx: ctx.value, "value=..."),
        (lambda ctx: ctx.previous, "previous=..."),
        (lambda ctx: ctx.probe, "query=..."),
        (lambda ctx: ctx.prompt, "embeddings=..."),
        (lambda ctx: ctx.final_norm(ctx.hidden), "final_norm=..."),
        (lambda ctx: ctx.annotation("foreground"), "annotations={...}"),
    ],
)
def test_missing_signals_name_their_argument(read: Any, argument: str) -> None:
    with pytest.raises(ScoreError) as caught:
        read(make_context(HIDDEN))
    assert argument in str(caught.value)


def test_a_missing_grid_is_no_support_for_grids() -> None:
    """The same error as for a model whose adapter has no grid: a component may catch it."""
    with pytest.raises(UnsupportedModelError, match="grid="):
        _ = make_context(HIDDEN).grid.frames


#: A signal that must be declared, and a way to read it.
READS: list[tuple[str, Callable[[PruneContext], object]]] = [
    *((name, attrgetter(name)) for name in ("query", "key", "value", "previous")),
    ("attention", lambda ctx: ctx.probe),
    ("entering", lambda ctx: ctx.entering_probe),
    ("embeddings", lambda ctx: ctx.prompt),
    *(("text", attrgetter(name)) for name in ("hidden_rows", "row_mask", "text_mask", "last_row")),
    *(("text", attrgetter(name)) for name in ("visual_rows", "positions")),
    *(("grid", attrgetter(f"grid.{name}")) for name in ("coordinates", "frames", "frame_sizes")),
    ("grid", lambda ctx: ctx.by_frame(lambda quota, frames, others: frames)),
    ("sample_ids", lambda ctx: ctx.sample_ids),
    ("annotations", lambda ctx: ctx.annotation("foreground")),
]
TENSORS: dict[str, Any] = {
    **dict.fromkeys(("query", "key", "value"), STATES),
    **dict.fromkeys(("previous", "embeddings"), HIDDEN),
    "grid": torch.arange(4)[None, :, None] * torch.tensor([0, 0, 1]).expand(2, 1, 3),
    "annotations": {"foreground": HIDDEN[:, :, 0]},
}


def some_of(ctx: PruneContext) -> PruneContext:
    """The context of `pool`: of the first tokens alone."""
    return ctx.among(torch.tensor([[True, True, False, False]] * 2), [[2], [2]])[0]


@pytest.mark.parametrize(("name", "read"), READS)
def test_undeclared_signals_are_refused(name: str, read: Callable[[PruneContext], object]) -> None:
    ctx = make_context(HIDDEN, **TENSORS, needs=SIGNALS - WITH_TEXT - {name})
    for context in (ctx, some_of(ctx)):
        with pytest.raises(ScoreError, match=f"'{name}', which it does not declare.*add '{name}' to its needs$"):
            read(context)
        assert torch.equal(context.hidden, HIDDEN[:, : context.visual_mask.shape[1]])


@pytest.mark.parametrize(("name", "read"), READS)
def test_declared_signals_can_be_read(name: str, read: Callable[[PruneContext], object]) -> None:
    read(make_context(HIDDEN, **TENSORS, needs={name}))


@pytest.mark.parametrize("name", ["attention", "embeddings", "entering"])
def test_signals_of_the_whole_sequence_include_its_text(name: str) -> None:
    ctx = make_context(HIDDEN, torch.tensor([[False, True, True, False]] * 2), needs={name})
    assert ctx.text_mask.tolist() == [[True, False, False, True]] * 2
    assert ctx.last_row.tolist() == [3, 3]
    assert ctx.positions.tolist() == [[1, 2]] * 2


def test_the_final_norm_must_be_declared() -> None:
    ctx = make_context(HIDDEN, final_norm=torch.neg, needs={"hidden"})
    with pytest.raises(ScoreError, match=r"'final_norm', which it does not declare.*add 'final_norm' to its needs"):
        ctx.final_norm(ctx.hidden)
    declared = make_context(HIDDEN, final_norm=torch.neg, needs={"final_norm"})
    assert torch.equal(declared.final_norm(declared.hidden), -HIDDEN)


def test_undeclared_tower_layers_are_refused() -> None:
    tower = {-2: TowerTensors(HIDDEN[..., 0], HIDDEN[..., 1], key=HIDDEN, features=-HIDDEN)}
    ctx = make_context(HIDDEN, tower=tower)
    assert torch.equal(ctx.vision(-2).key, HIDDEN)
    with pytest.raises(ScoreError, match=r"layer 6 of the vision tower.*add 6 to its vision_layers"):
        ctx.vision(6)


def test_a_named_method_selects_on_plain_tensors() -> None:
    """A pruner of a configuration is called like any other."""
    method = tp.Method.from_dict(
        {
            "layers": {"name": "fixed", "layers": [1]},
            "pruner": {"name": "topk", "scorer": {"name": "norm", "source": "hidden"}},
            "budget": {"name": "keep_count", "tokens": 1},
        }
    )
    keep = method.pruner.select(make_context(HIDDEN, keep=[[2], [1]])).keep
    assert keep.tolist() == [[False, False, True, True], [False, False, False, True]]


def test_a_layer_that_ran_says_what_its_tensors_say() -> None:
    """Two tiles of three patches in a row; nothing is computed before it is read."""
    query, key, output = (torch.randn(2, 3, 2, 4), torch.randn(2, 3, 2, 4), torch.randn(2, 3, 8))
    layer = TowerLayer(query, key, 0, 0.5, output=output, tiles=torch.tensor([0, 0, 0, 1, 1, 1]))
    tensors = TowerTensors(
        layer.attention.view(1, 6),
        layer.received.view(1, 6),
        key=key.mean(2).view(1, 6, 4),
        features=output.view(1, 6, 8),
        by_head={"hidden": output.view(1, 6, 2, 4)},
    )
    unread = TowerLayer(query, key, 0, 0.5, output=output, tiles=layer.tiles)
    contexts = [make_context(torch.zeros(1, 6, 8), tower={-1: made}) for made in (tower_signals(unread), tensors)]
    assert "attention" not in vars(unread)
    one, other = (context.vision(-1) for context in contexts)
    for name in ("attention", "received", "key", "features"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name
    assert torch.equal(one.states("hidden"), other.states("hidden"))
    assert [tile.tolist() for tile in one.tiles or ()] == [[0, 0, 0, 1, 1, 1]]
    assert one.projector is None
