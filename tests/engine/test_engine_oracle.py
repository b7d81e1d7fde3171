"""The engine against the oracle: families x attention x padding x kept counts x layers x ways to run."""

from __future__ import annotations

import pytest
import torch

import tokenprune as tp
from tests.support import matrix
from tests.support.matrix import Cell, generate, method, model_of, run_cell
from tests.support.oracle import oracle_generate_logits, tolerance
from tests.support.tiny import CASES, CORE
from tests.support.tiny.core import CACHE, Padding, Variant

torch.set_num_threads(1)
CLOSELY = ("llava", "qwen2_5_vl")
CELLS = [
    *(cell for name in CLOSELY for cell in matrix.triples(name)),
    *matrix.cells([name for name in CORE if name not in CLOSELY]),
    # the generic path: `python -m tests.support.families_table` runs all cells of these families
    *matrix.cells([name for name in CASES if name not in CORE], thin=True),
]
BF16 = [
    Cell(name, attention, "left", variant, layer, mode, torch.bfloat16)  # type: ignore[arg-type]
    for name in ("llava", "qwen2_5_vl", "qwen3_vl", "gemma3", "paligemma", "smolvlm")
    for attention, variant, layer, mode in (("sdpa", "image", "1", "greedy"), ("eager", "ragged", "middle", "forward"))
]


REFUSED = {"gemma4", "granite4_vision", "llama4_tuned", "minimax_m3_vl"} | {n for n, c in CASES.items() if c.hybrid}
"""Families that are refused at some layers or for some prompts: docs/families.md says why."""


def skip_refused(name: str, error: tp.TokenPruneError) -> None:
    """Some families may be refused, with an error of ours that says why; no other may."""
    if name not in REFUSED:
        raise error
    pytest.skip(f"refused: {error}")


@pytest.mark.each("cell.family", "cell.dtype")
@pytest.mark.parametrize("cell", [*CELLS, *BF16], ids=str)
def test_engine_is_the_oracle(cell: Cell) -> None:
    """The pruned run equals the masked unpruned one."""
    try:
        judged = run_cell(cell)
    except tp.TokenPruneError as error:
        skip_refused(cell.family, error)
        return
    assert judged.worst <= judged.allowed


@pytest.mark.parametrize(
    ("name", "attention"),
    [(name, attention) for name, case in CASES.items() for attention in case.attentions[: 2 if case.core else 1]],
)
@torch.no_grad()
def test_nothing_to_prune_is_bitwise(name: str, attention: str) -> None:
    """Keep-all and text-only runs are bit for bit the untouched model's, before, under and after `apply`."""
    case = CASES[name]
    model = model_of(name, attention)
    wanted: tuple[tuple[Variant, float], ...] = (("ragged", 1.0), ("text", 0.5))
    for variant, ratio in wanted if case.generates else (("image", 1.0),):
        inputs = case.batch(model, 3, "left", variant=variant).inputs
        plain, forward = (generate(model, inputs) if case.generates else None), model(**inputs).logits
        try:
            with tp.apply(model, method([1], {"name": "keep_ratio", "ratio": ratio})) as run:
                under_forward = model(**inputs).logits
                under = generate(model, inputs) if case.generates else None
        except tp.TokenPruneError as error:
            skip_refused(name, error)
            return
        if plain is not None and under is not None:
            assert torch.equal(under.sequences, plain.sequences)
            assert torch.equal(torch.stack(under.logits), torch.stack(plain.logits))
        assert torch.equal(under_forward, forward)
        assert all(stage.reason for stage in run.stages)
        assert torch.equal(model(**inputs).logits, forward)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if not case.generates])
@torch.no_grad()
def test_generating_past_the_model_is_refused(name: str) -> None:
    """`generate` that hands embeddings to the language model inside would run unpruned; a forward is pruned."""
    model = model_of(name, "sdpa")
    inputs = CASES[name].batch(model, 2).inputs
    with tp.apply(model, method([1], {"name": "keep_count", "tokens": 5})) as run:
        model(**inputs)
        assert run.stages[0].after == [5, 5]
        with pytest.raises(tp.TokenPruneError, match="called by itself inside an apply block"):
            generate(model, inputs)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", CORE)
@torch.no_grad()
def test_two_stages(name: str, attention: str) -> None:
    """Two stages in one run, the second on what the first left."""
    case = CASES[name]
    model = model_of(name, attention)
    inputs = case.batch(model, 3, "left", seed=2, variant="ragged").inputs
    layers = [1, 3]
    with tp.apply(model, method(layers, {"name": "keep_ratio", "ratio": 0.4})) as run:
        out = generate(model, inputs)
    stages = matrix.stages_of(run)
    expected = oracle_generate_logits(
        model, inputs, out.sequences[:, -matrix.STEPS :], stages, case.visual_ids, case.appended
    )
    assert matrix.difference(torch.stack(out.logits, 1), expected) <= tolerance(expected)


@pytest.mark.parametrize("name", CORE)
@torch.no_grad()
def test_groups_keep_their_share(name: str) -> None:
    """Each image keeps the floor of its share or one more, at least one; the total is the budget's."""
    case = CASES[name]
    model = model_of(name, "sdpa")
    batch = case.batch(model, 3, "left", seed=3, variant="ragged")
    with tp.apply(model, method([1], {"name": "keep_ratio", "ratio": 0.33})) as run:
        model(**batch.inputs)
    visual = torch.isin(batch.inputs["input_ids"], torch.tensor(case.visual_ids))
    for b, sizes in enumerate(batch.groups):
        kept = run.stages[0].kept[b]
        places = visual[b].nonzero()[:, 0].split(sizes)
        counts = [int(torch.isin(place, kept).sum()) for place in places]
        total = sum(counts)
        assert total == run.stages[0].after[b]
        assert abs(total - 0.33 * sum(sizes)) <= max(1, len(sizes))
        for count, size in zip(counts, sizes, strict=True):
            share = total * size / sum(sizes)
            assert count >= 1
            assert share - 1 < count < share + 1 + (count == 1)


@pytest.mark.parametrize("padding", ["none", "left"])
@pytest.mark.parametrize("name", CORE)
@torch.no_grad()
def test_expanded_and_repeated_runs(name: str, padding: Padding) -> None:
    """`num_return_sequences` expands the batch; a second prompt under the same `apply` starts afresh."""
    case = CASES[name]
    model = model_of(name, "sdpa")
    with tp.apply(model, method([1], {"name": "keep_count", "tokens": 5})) as run:
        generate(model, case.batch(model, 3, padding, seed=4).inputs)
        inputs = case.batch(model, 2, padding, seed=5).inputs
        out = generate(model, inputs, do_sample=True, num_return_sequences=2)
    copies = out.sequences[:, -matrix.STEPS :].unflatten(0, (2, 2))
    logits = torch.stack(out.logits, 1).unflatten(0, (2, 2))
    for copy in range(2):
        stages = [(layer, kept[copy::2] if len(kept) == 4 else kept) for layer, kept in matrix.stages_of(run)]
        expected = oracle_generate_logits(model, inputs, copies[:, copy], stages, case.visual_ids, case.appended)
        assert matrix.difference(logits[:, copy], expected) <= tolerance(expected)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", CORE)
@torch.no_grad()
def test_without_attention_mask(name: str, attention: str) -> None:
    """Users leave the attention mask out when nothing is padded."""
    case = CASES[name]
    model = model_of(name, attention)
    inputs = case.batch(model, 2, seed=6).inputs
    bare = {k: v for k, v in inputs.items() if k != "attention_mask"}
    with tp.apply(model, method([1], {"name": "keep_count", "tokens": 5})) as run:
        out = generate(model, bare)
    generated = out.sequences[:, -matrix.STEPS :]
    expected = oracle_generate_logits(model, inputs, generated, matrix.stages_of(run), case.visual_ids, case.appended)
    assert matrix.difference(torch.stack(out.logits, 1), expected) <= tolerance(expected)


@pytest.mark.parametrize("name", CORE)
@torch.no_grad()
def test_next_turn_on_the_cache(name: str) -> None:
    """A chat that goes on from the cache is right to the last logit, or refused by one of our errors."""
    case = CASES[name]
    model = model_of(name, "sdpa")
    inputs = case.batch(model, 2, seed=7).inputs
    with tp.apply(model, method([1], {"name": "keep_count", "tokens": 5})) as run:
        first = generate(model, inputs)
        stages = matrix.stages_of(run)
        more = torch.randint(3, 100, (2, 3), generator=torch.Generator().manual_seed(0))
        turn = torch.cat([first.sequences, more], 1)
        mask = torch.ones_like(turn)
        try:
            second = model.generate(
                input_ids=turn,
                attention_mask=mask,
                **{CACHE: first[CACHE]},
                max_new_tokens=matrix.STEPS,
                output_logits=True,
                return_dict_in_generate=True,
            )
        except tp.TokenPruneError:
            return
    tail = second.sequences[:, inputs["input_ids"].shape[1] :]
    expected = oracle_generate_logits(model, inputs, tail, stages, case.visual_ids, case.appended)
    ours = torch.stack(second.logits, 1)
    assert matrix.difference(ours, expected[:, -matrix.STEPS :]) <= tolerance(expected)
