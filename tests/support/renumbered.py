"""The oracle of renumbered positions: the unpruned model on all tokens, dropped ones hidden, with new numbers."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tests.support.oracle import Inputs, Stage, dropped, extended, masked, positions_of_generate
from tests.support.tiny import CASES


def numbers(inputs: Inputs, stages: list[Stage], visual_ids: tuple[int, ...], layer: int, given: Tensor) -> Tensor:
    """Each token's position at a layer: its number among those left, or as ``given`` in samples that lost nothing."""
    gone = dropped(inputs, stages, visual_ids, layer)
    real = inputs["attention_mask"].bool() & ~gone
    counted = (real.long().cumsum(1) - 1).clamp(min=0)
    return torch.where(gone.any(1, keepdim=True), counted, given)


@torch.no_grad()
def expected_logits(
    model: PreTrainedModel, name: str, inputs: Inputs, generated: Tensor, stages: list[Stage]
) -> Tensor:
    """Logits from which each generated token must have been taken, where pruning is before layer 0."""
    case = CASES[name]
    sequence = extended(inputs, generated, case.appended)
    ids = numbers(sequence, stages, case.visual_ids, 0, positions_of_generate(model, sequence))
    with masked(model, sequence, stages, case.visual_ids):
        logits: Tensor = model(**sequence, position_ids=ids, use_cache=False).logits
    return logits[:, -generated.shape[1] - 1 : -1]
