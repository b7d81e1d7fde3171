"""Labels in a pruned forward: the loss and the gradients are those of the masked oracle."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

import tokenprune as tp
from tests.support import matrix
from tests.support.oracle import dropped, masked, tolerance
from tests.support.tiny import CASES

IGNORED = -100


def labels_of(inputs: dict[str, Tensor], visual_ids: tuple[int, ...]) -> Tensor:
    """Every token is a target but padding, visual tokens, and what only padding could predict."""
    labels, real = inputs["input_ids"].clone(), inputs["attention_mask"].bool()
    labels[torch.isin(labels, torch.tensor(visual_ids)) | ~real] = IGNORED
    labels[:, 1:][~real[:, :-1]] = IGNORED
    return labels


def gradients(model: PreTrainedModel) -> dict[str, Tensor]:
    found = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad()
    return found


def judge(family: str, attention: str, padding, variant, layers, **more):
    case = CASES[family]
    model = case.build(attention).train()
    inputs = case.batch(model, 3, padding, seed=1, variant=variant).inputs
    labels = labels_of(inputs, case.visual_ids)
    with tp.apply(model, matrix.method(layers, matrix.budget_of(variant))) as run:
        ours = model(**inputs, labels=labels, use_cache=False, **more).loss
        ours.backward()
    found = gradients(model)
    stages = matrix.stages_of(run)
    gone = dropped(inputs, stages, case.visual_ids, 10**6)
    lost = torch.nn.functional.pad(gone, (1, 0))[:, :-1] & (labels != IGNORED)
    with masked(model, inputs, stages, case.visual_ids):
        theirs = model(**inputs, labels=labels.masked_fill(lost, IGNORED), use_cache=False, **more).loss
        theirs.backward()
    expected = gradients(model)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert found.keys() == expected.keys()
    top = max(float(g.abs().max()) for g in expected.values())
    worst = max(float((found[n] - expected[n]).abs().max()) for n in expected)
    assert worst <= 1e-5 * max(top, 1), (worst, top)
    assert run.report.lost_targets == lost.sum(1).tolist()
    return worst, top, run.report.lost_targets, run.report.targets
