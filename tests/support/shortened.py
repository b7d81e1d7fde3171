"""The shortened prompt: the unpruned decoder on the embeddings that are left, one sample at a time.

Nothing here numbers a token: positions are those of the model's own ``get_rope_index``, or of its decoder where it has
none. A prompt that was shortened is numbered as text, because what is left of an image is no grid.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tests.support.oracle import Inputs, extended, positions_of_generate
from tests.support.tiny import TinyCase


@torch.no_grad()
def shortened_logits(
    model: Any, case: TinyCase, alone: Inputs, generated: Tensor, kept: Tensor, more: Mapping[str, Any] | None = None
) -> Tensor:
    """Logits from which each generated token must have been taken, where pruning is before layer 0.

    Args:
        model: The unpruned model.
        case: Its family.
        alone: The inputs of one sample, without padding.
        generated: What followed, long ``[n]``.
        kept: Positions of the kept visual tokens in ``alone``, long ``[kept]``.
        more: Inputs that only the model's own positions depend on.

    Returns:
        ``[n, vocab]``.
    """
    whole = extended(alone, generated[None], case.appended)
    visual = torch.isin(whole["input_ids"][0], torch.tensor(case.visual_ids))
    left = ~visual
    left[kept] = True
    arguments = decoder_arguments(model, {**whole, **(more or {})})
    entered = arguments.pop("inputs_embeds")[:, left]
    features = arguments.get("deepstack_visual_embeds")
    if features is not None:
        features = [states[left[visual]] for states in features]
        arguments.update(visual_pos_masks=visual[left][None], deepstack_visual_embeds=features)
    ids = whole["input_ids"][:, left]
    positions = own_positions(model, {**alone, **(more or {})}, len(generated)) if left.all() else as_text(model, ids)
    named = {name: arguments[name] for name in ("visual_pos_masks", "deepstack_visual_embeds") if name in arguments}
    states = model.get_decoder()(inputs_embeds=entered, position_ids=positions, use_cache=False, **named)
    logits: Tensor = model.get_output_embeddings()(states.last_hidden_state)
    return logits[0, -len(generated) - 1 : -1]


def as_text(model: Any, ids: Tensor) -> Tensor | None:
    """The model's own positions of a prompt that is all text; None lets the decoder count."""
    index = getattr(model.model, "get_rope_index", None)
    if index is None:
        return None
    positions: Tensor = index(ids, mm_token_type_ids=torch.zeros_like(ids), attention_mask=torch.ones_like(ids))[0]
    return positions


def own_positions(model: Any, inputs: Inputs, steps: int) -> Tensor:
    """The positions of ``generate``: its prompt's, and for every step one more than the last."""
    prompt = positions_of_generate(model, inputs)
    return torch.cat([prompt, prompt[..., -1:] + torch.arange(1, steps + 1)], -1)


def decoder_arguments(model: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """What the unpruned decoder is given."""
    seen: dict[str, Any] = {}
    hook = model.get_decoder().register_forward_pre_hook(
        lambda module, args, kwargs: seen.update(kwargs), with_kwargs=True
    )
    model(**inputs)
    hook.remove()
    return seen
