"""Renumbered positions: the tokens that are left are numbered without gaps.

Two computations that do not use the engine say what is right: the unpruned model on all tokens, with the dropped ones
hidden and the new numbers as ``position_ids``; and the decoder on the shortened prompt itself
(:mod:`tests.support.shortened`). A sample that loses nothing keeps its positions in both.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

import tokenprune as tp
from tests.support import matrix
from tests.support.matrix import generate, model_of
from tests.support.oracle import (
    Inputs,
    Stage,
    decoder_layers,
    extended,
    masked,
    positions_of_generate,
    tolerance,
)
from tests.support.renumbered import expected_logits, numbers
from tests.support.shortened import shortened_logits
from tests.support.tiny import CASES
from tests.support.tiny.core import CACHE, Padding, Variant
from tests.support.windows import wide_gemma
from tokenprune.budgets.keep import KeepRatio
from tokenprune.engine.renumber import Renumbering, RotaryCalls
from tokenprune.errors import UnsupportedFeatureError, UnsupportedModelError
from tokenprune.experiment.config import MethodEntry
from tokenprune.methods.named import shipped_method

SLIDING = {"gemma3"}
FAMILIES = [name for name, case in CASES.items() if case.core and name not in SLIDING]
BOTH_DIRECTIONS = {"paligemma"}
"""Their prompts see both directions, which a decoder called by itself is not told."""


def renumbered(layers: list[int], budget: dict[str, Any]) -> tp.Method:
    return matrix.method(layers, budget).model_copy(update={"positions": "renumbered"})


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(("padding", "variant"), [("none", "image"), ("left", "ragged"), ("left", "multi")])
@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_every_step_is_that_of_renumbered_positions(
    name: str, padding: Padding, variant: Variant, attention: str
) -> None:
    case = CASES[name]
    if variant not in case.variants:
        pytest.skip("not a variant of this family")
    model = model_of(name, attention)
    inputs = case.batch(model, 3, padding, seed=1, variant=variant).inputs
    with tp.apply(model, renumbered([0], matrix.budget_of(variant))) as run:
        ours = generate(model, inputs)
    generated = ours.sequences[:, -matrix.STEPS :]
    expected = expected_logits(model, name, inputs, generated, matrix.stages_of(run))
    assert matrix.difference(torch.stack(ours.logits, 1), expected) <= tolerance(expected)
    with tp.apply(model, matrix.method([0], matrix.budget_of(variant))):
        original = model(**inputs).logits[:, -1]
    assert matrix.difference(original, expected[:, 0]) > 0.1  # the numbers matter to these weights


@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in BOTH_DIRECTIONS])
@torch.no_grad()
def test_the_model_computes_what_it_computes_of_the_shortened_prompt(name: str) -> None:
    """The decoder by itself, on the embeddings that are left, with the positions that the model gives them itself."""
    case = CASES[name]
    model: Any = model_of(name, "sdpa")
    inputs = case.batch(model, 1, "none", seed=2, variant="image").inputs
    with tp.apply(model, renumbered([0], {"name": "keep_count", "tokens": 5})) as run:
        ours = generate(model, inputs)
    generated = ours.sequences[0, -matrix.STEPS :]
    expected = shortened_logits(model, case, inputs, generated, run.stages[0].kept[0])
    assert matrix.difference(torch.cat(ours.logits), expected) <= tolerance(expected)


@contextmanager
def numbered_by_layer(
    model: Any, inputs: Inputs, stages: list[Stage], visual_ids: tuple[int, ...], given: Tensor
) -> Iterator[None]:
    """Every layer gets the positions that its tokens have there; ``given`` are those before the first stage."""
    decoder = model.get_decoder()
    handles = []
    given = given[1:] if len(given) == 4 else given  # `generate` adds the number in the text to the three axes
    for index, layer in enumerate(decoder_layers(model)):
        if index < stages[0][0]:
            continue
        ids = numbers(inputs, stages, visual_ids, index, given)

        def change(module: Any, args: Any, kwargs: dict[str, Any], ids: Tensor = ids) -> Any:
            states = args[0] if args else kwargs["hidden_states"]
            return args, {**kwargs, "position_embeddings": decoder.rotary_emb(states, ids)}

        handles.append(layer.register_forward_pre_hook(change, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


SEVERAL = {
    "falling": {"name": "keep_schedule", "ratios": [0.6, 0.3]},
    "the smallest later": {"name": "keep_schedule", "tokens": [17, 6]},
    "the smallest never": {"name": "keep_schedule", "tokens": [20, 17]},
}
"""Budgets of two stages; the smallest sample has 8 or 16 tokens, and loses some later than the others, or none."""


@pytest.mark.each("name")
@pytest.mark.parametrize("budget", SEVERAL)
@pytest.mark.parametrize("padding", ["none", "left"])
@pytest.mark.parametrize("name", ["llava", "llava_onevision", "qwen2_5_vl", "qwen3_vl"])
@torch.no_grad()
def test_stages_inside_the_model_number_their_own_tokens(name: str, padding: Padding, budget: str) -> None:
    """Two stages; a decode step goes on at another number in every layer group."""
    case = CASES[name]
    model = model_of(name, "sdpa")
    inputs = case.batch(model, 3, padding, seed=1, variant="ragged").inputs
    last = len(decoder_layers(model)) - 1
    with tp.apply(model, renumbered([1, last], SEVERAL[budget])) as run:
        ours = generate(model, inputs)
    stages = matrix.stages_of(run)
    generated = ours.sequences[:, -matrix.STEPS :]
    sequence = extended(inputs, generated, case.appended)
    given = positions_of_generate(model, sequence)
    with (
        numbered_by_layer(model, sequence, stages, case.visual_ids, given),
        masked(model, sequence, stages, case.visual_ids),
    ):
        logits = model(**sequence, position_ids=given, use_cache=False).logits
    expected = logits[:, -matrix.STEPS - 1 : -1]
    assert matrix.difference(torch.stack(ours.logits, 1), expected) <= tolerance(expected)


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
@torch.no_grad()
def test_beams_and_generation_without_a_cache(name: str) -> None:
    """Beams pick and repeat samples, and with them the number at which each goes on: it differs between samples."""
    case = CASES[name]
    model = model_of(name, "sdpa")
    variant: Variant = "image" if matrix.ONE_IMAGE_BEAMS else "ragged"
    inputs = case.batch(model, 3, "left", seed=1, variant=variant).inputs
    how = renumbered([0], {"name": "keep_ratio", "ratio": 0.4})
    with tp.apply(model, how):
        with_cache = generate(model, inputs, num_beams=3, output_scores=True)
    with tp.apply(model, how):
        without = generate(model, inputs, num_beams=3, output_scores=True, use_cache=False)
    assert torch.equal(with_cache.sequences, without.sequences)
    assert torch.allclose(with_cache.sequences_scores, without.sequences_scores, atol=1e-5)
    with tp.apply(model, how) as run:
        greedy = generate(model, inputs, use_cache=False)
    generated = greedy.sequences[:, -matrix.STEPS :]
    expected = expected_logits(model, name, inputs, generated, matrix.stages_of(run))
    assert matrix.difference(torch.stack(greedy.logits, 1), expected) <= tolerance(expected)


@torch.no_grad()
def test_without_visual_tokens_nothing_is_renumbered() -> None:
    model = model_of("llava", "sdpa")
    inputs = CASES["llava"].batch(model, 2, "left", variant="text").inputs
    with tp.apply(model, renumbered([0], {"name": "keep_count", "tokens": 5})):
        ours = generate(model, inputs)
    theirs = generate(model, inputs)
    assert torch.equal(torch.stack(ours.logits), torch.stack(theirs.logits))


@torch.no_grad()
def test_a_window_that_holds_the_whole_sequence_changes_nothing() -> None:
    case, model = CASES["gemma3"], wide_gemma(100)
    inputs = case.batch(model, 3, "left", seed=1, variant="image").inputs
    with tp.apply(model, renumbered([0], {"name": "keep_count", "tokens": 5})) as run:
        ours = generate(model, inputs)
    generated = ours.sequences[:, -matrix.STEPS :]
    expected = expected_logits(model, "gemma3", inputs, generated, matrix.stages_of(run))
    assert matrix.difference(torch.stack(ours.logits, 1), expected) <= tolerance(expected)


@torch.no_grad()
def test_a_sequence_longer_than_a_window_is_refused() -> None:
    """Before the prompt runs, and at the step that would leave the window."""
    case = CASES["gemma3"]
    model = wide_gemma(10)
    inputs = case.batch(model, 1, seed=1).inputs
    width = inputs["input_ids"].shape[1]
    how = renumbered([0], {"name": "keep_count", "tokens": 5})
    message = r"renumbered with \d+ tokens, and layers whose window is 10.*original"
    with pytest.raises(UnsupportedFeatureError, match=message), tp.apply(model, how):
        model(**inputs)
    model = wide_gemma(width + 2)
    with pytest.raises(UnsupportedFeatureError, match=f"renumbered with {width + 3} tokens"), tp.apply(model, how):
        generate(model, inputs)


@torch.no_grad()
def test_layers_without_position_embeddings_are_refused() -> None:
    """A rotary embedding that nobody can make again would leave the old positions in place."""
    model = CASES["llava"].build("sdpa")
    inputs = CASES["llava"].batch(model, 1, seed=1).inputs
    decoder: Any = model.get_decoder()
    own = decoder.rotary_emb.forward
    decoder.rotary_emb.forward = lambda states, position_ids: own(states, position_ids)
    how = renumbered([0], {"name": "keep_count", "tokens": 5})
    with tp.apply(model, how):  # a replaced forward is still that module's
        model(**inputs)
    decoder.rotary_emb = torch.nn.Identity()
    decoder.rotary_emb.forward = own
    message = r"not given cosines and sines.*positions: original"
    with pytest.raises(UnsupportedModelError, match=message), tp.apply(model, how):
        model(**inputs)


def test_numbers_of_rows() -> None:
    """The first token keeps its position; padding in front and padding of a ragged stage do not count."""
    rows = torch.tensor([[0, 1, 2, 5, 6], [-1, -1, 0, 3, 6]])
    tokens = torch.tensor([[False, True, True, True, True, True, True], [True] * 7])
    plain = torch.tensor([[1, 0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5, 6]])
    rotary = RotaryCalls()
    made = Renumbering(rotary, rows, tokens)
    assert made.ids(plain).tolist() == [[0, 0, 1, 2, 3], [0, 0, 0, 1, 2]]
    # three axes (time, row, column) of an image at the end
    axes = torch.stack([plain.clamp(max=2), plain, plain.clamp(max=4)])
    assert made.ids(axes).tolist() == [[[0, 0, 1, 2, 3], [0, 0, 0, 1, 2]]] * 3
    for ids in (plain, axes, axes.flip(0) * 9):  # wherever the model itself would go on
        rotary = RotaryCalls()
        rotary.record(lambda **_: None, {"position_ids": ids}, None)
        assert Renumbering(rotary, rows, tokens).following().tolist() == [4, 3]


def test_numbers_of_a_sample_that_loses_nothing() -> None:
    """It keeps its positions, gaps included, beside one that loses some; padding in front is no token."""
    rows = torch.tensor([[1, 2, 3, 4], [-1, 0, 3, 4]])
    tokens = torch.tensor([[False, True, True, True, True], [True] * 5])
    old = torch.tensor([[1, 0, 4, 4, 8], [0, 1, 2, 3, 4]])
    rotary = RotaryCalls()
    rotary.record(lambda **_: None, {"position_ids": old}, None)
    made = Renumbering(rotary, rows, tokens)
    assert made.ids(old).tolist() == [[0, 4, 4, 8], [0, 0, 1, 2]]
    assert made.following().tolist() == [-1, 3]


@torch.no_grad()
def test_layers_are_told_the_same_positions_as_their_rotary_embedding() -> None:
    """Layers that read ``position_ids`` themselves get the new ones, in the prefill and in a step."""
    model: Any = model_of("llava", "sdpa")
    inputs = CASES["llava"].batch(model, 1, seed=1).inputs
    seen: list[Tensor] = []
    hook = decoder_layers(model)[1].register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["position_ids"]), with_kwargs=True
    )
    with tp.apply(model, renumbered([0], {"name": "keep_count", "tokens": 5})) as run:
        model.generate(**inputs, max_new_tokens=3)
    hook.remove()
    left = inputs["input_ids"].shape[1] - run.stages[0].before[0] + 5
    assert [ids.tolist() for ids in seen] == [[list(range(left))], [[left]], [[left + 1]]]


def test_positions_are_part_of_a_method() -> None:
    method = tp.load_method("divprune")
    assert method.positions == "original"
    with pytest.raises(tp.TokenPruneError, match=r"positions.*'original' or 'renumbered'"):
        tp.Method.from_dict({**method.model_dump(), "positions": "kept"})


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
@torch.no_grad()
def test_a_conversation_goes_on_after_the_renumbered_prompt(name: str) -> None:
    """Several new tokens at once on the pruned cache, then steps; also on a copy of the cache."""
    case = CASES[name]
    model: Any = model_of(name, "sdpa")
    inputs = case.batch(model, 2, seed=7).inputs
    more = torch.randint(3, 100, (2, 3), generator=torch.Generator().manual_seed(0))
    with tp.apply(model, renumbered([0], {"name": "keep_count", "tokens": 5})) as run:
        first = generate(model, inputs)
        stages = matrix.stages_of(run)
        turn = torch.cat([first.sequences, more], 1)
        second = model.generate(
            input_ids=turn,
            attention_mask=torch.ones_like(turn),
            **{CACHE: copy.deepcopy(first[CACHE])},
            max_new_tokens=matrix.STEPS,
            output_logits=True,
            return_dict_in_generate=True,
        )
    tail = second.sequences[:, inputs["input_ids"].shape[1] :]
    expected = expected_logits(model, name, inputs, tail, stages)
    assert matrix.difference(torch.stack(second.logits, 1), expected[:, -matrix.STEPS :]) <= tolerance(expected)


@pytest.mark.slow
@torch.no_grad()
def test_a_compiled_model_is_renumbered_too() -> None:
    """It was compiled and ran before; inside the block it runs eagerly."""
    case = CASES["llava"]
    model: Any = case.build("sdpa")
    inputs = case.batch(model, 2, "left", seed=1).inputs
    compiled = torch.compile(model, backend="eager")
    compiled(**inputs)
    with tp.apply(compiled, renumbered([0], {"name": "keep_count", "tokens": 5})) as run:
        ours = compiled(**inputs).logits[:, -1]
    generated = torch.full((2, 1), 5)
    expected = expected_logits(model, "llava", inputs, generated, matrix.stages_of(run))[:, 0]
    assert matrix.difference(ours, expected) <= tolerance(expected)


@torch.no_grad()
def test_nothing_is_left_on_the_model() -> None:
    model: Any = model_of("llava", "sdpa")
    inputs = CASES["llava"].batch(model, 1, seed=1).inputs
    before = model(**inputs).logits
    with tp.apply(model, renumbered([0], {"name": "keep_count", "tokens": 5})):
        model(**inputs)
    assert "forward" not in vars(model.get_decoder().rotary_emb)
    assert torch.equal(model(**inputs).logits, before)


@torch.no_grad()
def test_samples_that_are_picked_or_repeated_keep_their_number() -> None:
    """What beam search does to a cache; the samples have different numbers of tokens."""
    case, model = CASES["llava"], model_of("llava", "sdpa")
    inputs = case.batch(model, 2, "left", seed=1, variant="ragged").inputs
    with tp.apply(model, renumbered([0], {"name": "keep_ratio", "ratio": 0.4})):
        cache = model(**inputs)[CACHE]
    first, second = cache.layers[0].rows.following.tolist()
    assert first != second
    cache.reorder_cache(torch.tensor([1, 0]))
    assert [layer.rows.following.tolist() for layer in cache.layers] == [[second, first]] * len(cache.layers)
    cache.batch_repeat_interleave(2)
    assert cache.layers[-1].rows.following.tolist() == [second, second, first, first]
    cache.batch_select_indices(torch.tensor([3, 1]))
    assert cache.layers[-1].rows.following.tolist() == [first, second]


def test_an_experiment_replaces_the_positions_of_a_named_method() -> None:
    budget = KeepRatio(ratio=0.5)
    entry = MethodEntry(name="divprune", positions="renumbered")
    assert entry.method(budget).positions == "renumbered"
    assert MethodEntry(name="divprune").method(budget).positions == "original"
    published = shipped_method("divprune").settings_for("LLaVA-1.5")
    assert MethodEntry(name="divprune", published=True).method(budget, published).positions == "renumbered"
    back = MethodEntry(name="divprune", published=True, positions="original")
    assert back.method(budget, published).positions == "original"
