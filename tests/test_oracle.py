"""The oracle judged: it must hide what it says, nothing else, and agree with physical removal."""

from __future__ import annotations

import pytest
import torch

from tests.oracle import Stage, extended, oracle_generate_logits, oracle_logits, positions_of_generate, visual_positions
from tests.tiny import CASES
from tests.tiny.core import TinyCase

torch.set_num_threads(1)
STEPS = 4


def combinations(*, hybrid: bool = True) -> list[tuple[str, str, str]]:
    """(family, attention, padding) of every case."""
    return [
        (name, attention, padding)
        for name, case in CASES.items()
        if hybrid or not case.hybrid
        for attention in case.attentions
        for padding in ("none", "left")
    ]


def keep_all(case: TinyCase, inputs: dict[str, torch.Tensor]) -> Stage:
    """A stage before layer 0 that drops nothing."""
    rows = [row.nonzero()[:, 0] for row in visual_positions(inputs, case.visual_ids)]
    return 0, torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-1)


@pytest.mark.parametrize(("name", "attention", "padding"), combinations(hybrid=False))
@torch.no_grad()
def test_masks_and_positions_matter(name: str, attention: str, padding: str) -> None:
    """One hidden visual token or one shifted position changes the logits: a wrong engine cannot pass unseen."""
    case = CASES[name]
    model = case.build(attention)
    inputs = case.batch(model, 2, padding).inputs  # type: ignore[arg-type]
    plain = model(**inputs).logits
    layer, kept = keep_all(case, inputs)
    assert torch.equal(oracle_logits(model, inputs, [(layer, kept)], case.visual_ids), plain)
    last = inputs["attention_mask"].cumsum(1).argmax(1)
    rows = torch.arange(2)
    for start in (0, 1):
        without_last = oracle_logits(model, inputs, [(start, kept[:, :-1])], case.visual_ids)
        if start + 1 < len(model.get_decoder().layers):
            assert (without_last - plain)[rows, last].abs().amax(1).min() > 1e-3
        before = inputs["attention_mask"].cumsum(1) <= kept[:, -1:] - kept[:, :1]
        first_visual = torch.arange(plain.shape[1]) < kept[:, :1]
        unseen = before & first_visual & inputs["attention_mask"].bool()
        if not case.first:
            torch.testing.assert_close(without_last[unseen], plain[unseen], rtol=0, atol=1e-5)


@pytest.mark.parametrize(("name", "attention", "padding"), combinations())
@torch.no_grad()
def test_teacher_forcing_is_generate(name: str, attention: str, padding: str) -> None:
    """With nothing hidden the oracle's logits are those of `generate`, step by step."""
    case = CASES[name]
    model = case.build(attention)
    for variant in case.variants:
        inputs = case.batch(model, 3, padding, variant=variant).inputs  # type: ignore[arg-type]
        out = model.generate(**inputs, max_new_tokens=STEPS, output_logits=True, return_dict_in_generate=True)
        generated = out.sequences[:, -STEPS:]
        ours = oracle_generate_logits(model, inputs, generated, [], case.visual_ids, case.appended)
        torch.testing.assert_close(ours, torch.stack(out.logits, 1), rtol=0, atol=2e-5)
