"""Rows: labels and gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.support import matrix
from tests.support.compatibility.judging import Apply, Found, Row
from tests.support.compatibility.kinds import DEFAULT, Use, stages_of
from tests.support.oracle import dropped, masked

HOW = matrix.method([1], {"name": "keep_ratio", "ratio": 0.5})
IGNORED = -100


def gradients(model: Any, **call: Any) -> Tensor:
    """The loss and all gradients, one after the other."""
    model.zero_grad()
    loss = model(**call, use_cache=False).loss
    loss.backward()
    found = [weight.grad.flatten() for weight in model.parameters() if weight.grad is not None]
    return torch.cat([loss.detach()[None], *found])


def trained(apply: Apply, checkpointed: bool = False, **more: Any) -> Found:
    """Loss and gradients beside those of the masked model, without the targets behind dropped tokens."""
    use = Use(DEFAULT, variant="ragged", padding="right")
    use.model = use.case.build().train()
    if checkpointed:
        use.model.gradient_checkpointing_enable()
    ids, real = use.inputs["input_ids"], use.inputs["attention_mask"].bool()
    labels = ids.masked_fill((ids == use.case.visual_ids[0]) | ~real, IGNORED)
    with apply(use.model, HOW) as run:
        ours = gradients(use.model, **use.inputs, labels=labels, **more)
    use.model.gradient_checkpointing_disable()
    stages = stages_of(run)
    gone = dropped(use.inputs, stages, use.case.visual_ids, layer=10**6)
    labels[:, 1:][gone[:, :-1]] = IGNORED
    with masked(use.model, use.inputs, stages, use.case.visual_ids):
        theirs = gradients(use.model, **use.inputs, labels=labels)
    return use.found(run, ours, theirs)


LOSS = "engine/test_labels.py::test_loss_and_gradients_are_the_oracles"
AGAIN = "engine/test_gradients.py::test_gradient_checkpointing_changes_no_gradient"

ROWS = (
    Row("labels: loss and gradients", {DEFAULT: trained}, {"": LOSS}),
    Row("gradient checkpointing", {DEFAULT: lambda apply: trained(apply, checkpointed=True)}, {"": AGAIN}),
    Row(
        "labels with `logits_to_keep`",
        {DEFAULT: lambda apply: trained(apply, logits_to_keep=4)},
        {"": "engine/test_labels.py::test_logits_of_some_positions"},
    ),
)
