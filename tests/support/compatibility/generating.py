"""Rows: ways to generate."""

from __future__ import annotations

from typing import Any

import torch

from tests.support import matrix
from tests.support.compatibility.judging import Apply, Found, Row
from tests.support.compatibility.kinds import COMPILED, DEFAULT, FP8, KINDS, NEW, NONE, STATIC, Use, over
from tests.support.tiny import CASES

STAGES = matrix.method([1, 2], {"name": "keep_schedule", "tokens": [9, 5]})


def written(kind: str, apply: Apply, options: dict[str, Any], **use: Any) -> Found:
    """A generation with further options of `generate`."""
    made = Use(kind, **use)
    with apply(made.model, STAGES) as run:
        out = made.generate(**options)
    return made.judged(run, out)


def beams(kind: str, apply: Apply) -> Found:
    """The score of each sequence that won."""
    use = Use(kind)
    with apply(use.model, STAGES) as run:
        out = use.generate(num_beams=3, output_scores=True)
    stages = [(layer, kept[:: len(kept) // use.batch]) for layer, kept in matrix.stages_of(run)]
    new = out.sequences[:, -NEW:]
    chosen = use.expected(use.inputs, new, stages).log_softmax(-1).gather(-1, new[..., None])
    return use.found(run, out.sequences_scores, chosen.sum((1, 2)) / NEW)


def assisted(kind: str, apply: Apply) -> Found:
    """A smaller model writes drafts: here one with other weights."""
    return written(kind, apply, {"assistant_model": CASES["llava"].build(seed=1)}, batch=1, padding="none")


def looked_up(kind: str, apply: Apply) -> Found:
    """Drafts are copied from the prompt, whose text repeats itself."""
    use = Use(kind, batch=1, padding="none")
    ids = use.inputs["input_ids"]
    use.inputs["input_ids"] = ids.masked_fill(ids != use.case.visual_ids[0], 7)
    widths: list[int] = []

    def note(module: Any, args: Any, kwargs: Any) -> None:
        if not torch.compiler.is_compiling():
            widths.append(kwargs["inputs_embeds"].shape[1])

    with use.model.get_decoder().register_forward_pre_hook(note, with_kwargs=True), apply(use.model, STAGES) as run:
        out = use.generate(new=12, prompt_lookup_num_tokens=2)
    assert max(widths[1:]) > 1, "no draft was verified"
    return use.judged(run, out)


def early_exit(kind: str, apply: Apply) -> Found:
    """Drafts of the model's own first layers."""
    return written(kind, apply, {"assistant_early_exit": 2}, batch=1, padding="none")


def in_chunks(kind: str, apply: Apply, last: bool) -> Found:
    """The first chunk ends behind the last picture, or inside it."""
    use = Use(kind, batch=1, padding="none")
    size = int((use.inputs["input_ids"] == use.case.visual_ids[0]).nonzero().max()) + (2 if last else -5)
    with apply(use.model, STAGES) as run:
        out = use.generate(prefill_chunk_size=size)
    return use.judged(run, out)


SAMPLED = {"do_sample": True, "num_return_sequences": 2}
ORACLE = "engine/test_engine_oracle.py::test_engine_is_the_oracle"
GRAPH = "engine/test_static.py::test_decoding_is_one_graph"
EXACT_STATIC = "engine/test_static.py::test_a_static_cache_is_the_oracle"
ROUNDING = "engine/test_quantized.py::test_pruning_adds_nothing_to_the_rounding_of_8_bit_floats"
STATIC_BEAMS = "engine/test_static.py::test_beams_and_samples"
EVERYWHERE = {DEFAULT: ORACLE, NONE: ORACLE, STATIC: EXACT_STATIC, COMPILED: GRAPH, FP8: ROUNDING}

ROWS = (
    Row("greedy", over(KINDS, lambda kind, apply: written(kind, apply, {})), EVERYWHERE),
    Row("sampling", over(KINDS, lambda kind, apply: written(kind, apply, {"do_sample": True})), {DEFAULT: ORACLE}),
    Row(
        "several returned sequences",
        over(KINDS, lambda kind, apply: written(kind, apply, SAMPLED)),
        {DEFAULT: "engine/test_engine_oracle.py::test_expanded_and_repeated_runs", STATIC: STATIC_BEAMS},
    ),
    Row(
        "beam search",
        over(KINDS, beams),
        {DEFAULT: ORACLE, STATIC: STATIC_BEAMS, FP8: "engine/test_quantized.py::test_beams"},
    ),
    Row(
        "assistant model",
        over(KINDS, assisted),
        {DEFAULT: "engine/test_assisted.py::test_an_assistant_model_changes_no_token"},
    ),
    Row("prompt lookup", over(KINDS, looked_up), {DEFAULT: "engine/test_assisted.py::test_prompt_lookup_is_greedy"}),
    Row(
        "drafts of the model's own layers",
        over(KINDS, early_exit),
        {DEFAULT: "engine/test_assisted.py::test_candidates_of_the_models_own_layers_are_refused"},
    ),
    Row(
        "prompt in chunks, pictures in the first",
        over(KINDS, lambda kind, apply: in_chunks(kind, apply, True)),
        {DEFAULT: "engine/test_edges.py::test_sampling_options_and_chunked_text"},
    ),
    Row(
        "prompt in chunks, pictures in several",
        over(KINDS, lambda kind, apply: in_chunks(kind, apply, False)),
        {DEFAULT: "engine/test_refusals.py::test_images_behind_the_first_chunk_are_refused"},
    ),
)
