"""Random uses of the engine, each judged by the oracle."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import StaticCache

import tokenprune as tp
from tests.support import matrix
from tests.support.matrix import STEPS, difference, generate, model_of
from tests.support.oracle import Inputs, Stage, dropped, masked, oracle_generate_logits, oracle_logits, tolerance
from tests.support.renumbered import expected_logits
from tests.support.tiny import CASES, TinyCase
from tests.support.tiny.core import CACHE, Padding, Variant
from tests.support.turns import DECODE, Talk, expected_turns, tell, worst_difference
from tokenprune.errors import TokenPruneError

Way = Literal["forward", "greedy", "sample", "beam", "lookup", "no cache", "two turns", "pictures"]
"""``two turns``: generation, then a turn of text. ``pictures``: turns of text, of pictures and of single tokens."""


@dataclass(frozen=True)
class Trial:
    """One use of the engine. Its text is what runs it again.

    Args:
        family: The tiny model.
        attention: The attention implementation.
        padding: Where the prompts are padded.
        variant: The pictures of each sample.
        batch: Samples; prompt lookup takes the first.
        seed: Of the prompts.
        layers: The stages.
        scorer: The scorer.
        tokens: Tokens that each stage keeps; None keeps `ratio`.
        ratio: Share that is kept.
        cut: Whether the caches of the layers before the stages are cut.
        renumbered: Whether positions are renumbered; then the one stage is before layer 0.
        static: Whether the cache is static.
        half: Whether the model computes in bfloat16.
        way: How it generates.
    """

    family: str
    attention: str
    padding: Padding
    variant: Variant
    batch: int
    seed: int
    layers: tuple[int, ...]
    scorer: str
    tokens: int | None
    ratio: float
    cut: bool
    renumbered: bool
    static: bool
    half: bool
    way: Way

    @property
    def method(self) -> tp.Method:
        """The method."""
        ratio: dict[str, Any] = {"name": "keep_ratio", "ratio": self.ratio}
        return tp.Method(
            layers={"name": "fixed", "layers": list(self.layers)},
            pruner={"name": "topk", "scorer": self.scorer},
            budget=ratio if self.tokens is None else {"name": "keep_count", "tokens": self.tokens},
            positions="renumbered" if self.renumbered else "original",
            cut_earlier_caches=self.cut,
        )

    @property
    def options(self) -> dict[str, Any]:
        """Options of `generate`."""
        ways: dict[str, dict[str, Any]] = {
            "sample": {"do_sample": True},
            "beam": {"num_beams": 3, "output_scores": True},
            "lookup": {"prompt_lookup_num_tokens": 2},
            "no cache": {"use_cache": False},
        }
        made = self.static and self.way != "two turns"  # what `generate` makes has no room for a second turn
        static = {"cache_implementation": "static"} if made else {}
        return {**ways.get(self.way, {}), **static, "disable_compile": True}


#: Why an error of ours is right: what a trial has, and what the error says.
REFUSED = (
    (lambda trial: trial.family == "gemma3", "window"),
    (lambda trial: trial.tokens is not None or trial.ratio < 0.3, "every image keeps at least one"),
)


@torch.no_grad()
def judge(trial: Trial) -> str | None:
    """Run a trial and compare it with the oracle.

    Returns:
        Why the trial is refused, and may be; None where it was compared.

    Raises:
        AssertionError: It differs.
        TokenPruneError: It is refused, and should not be.
    """
    case = CASES[trial.family]
    model = model_of(trial.family, trial.attention, torch.bfloat16 if trial.half else torch.float32)
    samples = 1 if trial.way == "lookup" else trial.batch
    inputs = case.batch(model, samples, trial.padding, seed=trial.seed, variant=trial.variant).inputs
    try:
        if trial.way == "pictures":
            return _judge_turns(trial, case, model)
        with tp.apply(model, trial.method) as run:
            ours, tail = _outcome(trial, model, inputs)
    except TokenPruneError as error:
        if any(has(trial) and text in str(error) for has, text in REFUSED):
            return str(error)
        raise
    stages = matrix.stages_of(run)
    theirs = _expected(trial, case, model, inputs, stages, tail)
    if trial.way == "forward":
        ours, theirs = _compared_rows(ours, theirs, inputs, stages, case)
    limit = matrix.BF16 * max(1.0, float(theirs.abs().max())) if trial.half else case.slack * tolerance(theirs)
    worst = difference(ours, theirs)
    assert worst <= limit, f"{worst:.2e} from the oracle, {limit:.0e} is allowed"
    return None


#: Orders of turns, by the seed.
ORDERS = (["first", DECODE, "image"], ["text", "first", DECODE, "first"], ["image", "text", "first", DECODE])


def _judge_turns(trial: Trial, case: TinyCase, model: Any) -> None:
    """Tell a conversation with pictures in several turns, and compare every call."""
    kinds = [trial.variant if kind == "first" else kind for kind in ORDERS[trial.seed % len(ORDERS)]]
    talk = Talk.of(case, model, kinds, trial.padding, trial.batch)
    room = StaticCache(config=model.config.get_text_config(), max_cache_len=talk.whole["input_ids"].shape[1] + 1)
    with tp.apply(model, trial.method) as run:
        told = tell(model, talk, run, room if trial.static else None)
    theirs = expected_turns(model, talk, told.stages, trial.cut)
    worst, limit = worst_difference(talk, told, theirs), case.slack * tolerance(theirs)
    assert worst <= limit, f"{worst:.2e} from the oracle, {limit:.0e} is allowed"


def _outcome(trial: Trial, model: Any, inputs: Inputs) -> tuple[Tensor, Tensor]:
    """What is compared, and the generated tokens."""
    none = torch.empty(0)
    if trial.way == "forward":
        return model(**inputs).logits, none
    given: dict[str, Any] = {}
    if trial.way == "two turns" and trial.static:
        room = inputs["input_ids"].shape[1] + 2 * STEPS + 3
        given[CACHE] = StaticCache(config=model.config.get_text_config(), max_cache_len=room)
    out = generate(model, inputs, **trial.options, **given)
    if trial.way == "beam":
        return out.sequences_scores, none
    if trial.way == "two turns":
        more = torch.randint(3, 100, (len(out.sequences), 3), generator=torch.Generator().manual_seed(trial.seed))
        ids = torch.cat([out.sequences, more], 1)
        seen = torch.cat([inputs["attention_mask"], torch.ones(len(ids), STEPS + 3, dtype=torch.long)], 1)
        turn = {"input_ids": ids, "attention_mask": seen}
        out = generate(model, turn, **{CACHE: out[CACHE]}, disable_compile=True)
    return torch.stack(out.logits, 1), out.sequences[:, inputs["input_ids"].shape[1] :]


def _expected(trial: Trial, case: TinyCase, model: Any, inputs: Inputs, stages: list[Stage], tail: Tensor) -> Tensor:
    if trial.way == "forward":
        return oracle_logits(model, inputs, stages, case.visual_ids)
    if trial.way == "beam":
        cut_at = [inputs["input_ids"].shape[1]] * trial.cut
        with masked(model, inputs, stages, case.visual_ids, *cut_at), matrix.suffixed(model, case, inputs):
            scores: Tensor = generate(model, inputs, **{**trial.options, "use_cache": False}).sequences_scores
        return scores
    if trial.renumbered:
        expected = expected_logits(model, trial.family, inputs, tail, stages)
    else:
        expected = oracle_generate_logits(model, inputs, tail, stages, case.visual_ids, case.appended, trial.cut)
    return expected[:, -STEPS:]


def _compared_rows(
    ours: Tensor, full: Tensor, inputs: Inputs, stages: list[Stage], case: TinyCase
) -> tuple[Tensor, Tensor]:
    """The rows that both have: those of the tokens that all stages keep; a pruned sample has them at its end."""
    gone = dropped(inputs, stages, case.visual_ids, layer=10**6)
    pairs = []
    for sample, missing in enumerate(gone):
        rows = (~missing).nonzero()[:, 0]
        real = inputs["attention_mask"][sample, rows].bool()
        pairs.append((ours[sample, -len(rows) :][real], full[sample, rows[real]]))
    return torch.cat([own for own, _ in pairs]), torch.cat([other for _, other in pairs])
