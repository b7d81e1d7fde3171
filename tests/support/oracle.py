"""The oracle: the expected results of a pruned run, computed without the engine.

A pruned run and an unpruned run whose layers >= K hide the columns of the dropped tokens are the same function of
the kept tokens. Here the second is computed: the full sequence goes through every layer, and hooks of this file
(none of the engine's) widen what the layers' masks hide. With ``cut_earlier_caches`` the rows behind the prompt see the
tokens that the last stage kept alone, in the layers before it, too.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

Stage = tuple[int, Tensor]
"""(layer K, kept [batch, max_kept]: positions of the kept visual tokens in the unpruned sequence, -1 padded)."""
Inputs = Mapping[str, Tensor]


class CannotJudgeError(Exception):
    """The layer has no attention mask that could hide a column (a hybrid stack)."""


def tolerance(logits: Tensor) -> float:
    """Tolerance of fp32 results: 1e-5 per unit of the largest logit, because logits are sums of that size.

    A model may close tokens of the vocabulary with the least number that there is (Chameleon): those are no sums.
    """
    return 1e-5 * max(1.0, float(logits[logits > torch.finfo(logits.dtype).min / 2].abs().max()))


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The language model's layers."""
    decoder = model.get_decoder()
    while not hasattr(decoder, "layers"):
        decoder = getattr(decoder, "model", None) or decoder.decoder  # OPT keeps them in the second
    layers = decoder.layers
    assert isinstance(layers, nn.ModuleList)
    return layers


def visual_positions(inputs: Inputs, visual_ids: Sequence[int]) -> Tensor:
    """Visual tokens, bool [batch, seq]."""
    return torch.isin(inputs["input_ids"], torch.tensor(visual_ids))


def dropped(inputs: Inputs, stages: Sequence[Stage], visual_ids: Sequence[int], layer: int) -> Tensor:
    """Tokens that layer `layer` must not see, bool [batch, seq]. Every stage before the layer adds some.

    Where the stages have several rows per sample (beams), so has the result.
    """
    visual = visual_positions(inputs, visual_ids)
    if stages:
        visual = visual.repeat_interleave(len(stages[0][1]) // len(visual), 0)
    out = torch.zeros_like(visual)
    for start, kept in stages:
        if start <= layer:
            keep = torch.zeros_like(visual)
            rows = torch.arange(len(kept))[:, None].expand_as(kept)
            keep[rows[kept >= 0], kept[kept >= 0]] = True
            assert not (keep & ~visual).any(), "a kept position is not a visual token"
            out |= visual & ~keep
    return out


@contextmanager
def masked(
    model: PreTrainedModel,
    inputs: Inputs,
    stages: Sequence[Stage],
    visual_ids: Sequence[int],
    *cut_at: int,
) -> Iterator[PreTrainedModel]:
    """Inside the block, `model` hides the tokens that the stages drop, on these inputs and without a KV cache.

    Works for longer sequences (tokens generated so far) and for batches expanded sample by sample (beams). Where the
    tokens of a prompt end at a number of `cut_at`, what follows them sees of them in every layer what the last layer
    sees.
    """
    with ExitStack() as stack:
        for index, layer in enumerate(decoder_layers(model)):
            hidden = dropped(inputs, stages, visual_ids, index)
            later = dropped(inputs, stages, visual_ids, 10**6) if cut_at else hidden
            if later.any():
                hook = _Hide(index, hidden, later, cut_at, inspect.signature(layer.forward))
                stack.callback(layer.register_forward_pre_hook(hook, with_kwargs=True).remove)
        yield model


@dataclass(frozen=True)
class _Hide:
    """Forward-pre-hook of one decoder layer: hides columns of its attention mask."""

    index: int
    hidden: Tensor
    later: Tensor
    cut_at: Sequence[int]
    signature: inspect.Signature

    def __call__(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        bound = self.signature.bind(*args, **kwargs)
        extra = next((p.name for p in self.signature.parameters.values() if p.kind is p.VAR_KEYWORD), None)
        where = bound.arguments
        if "attention_mask" not in where and extra in where and "attention_mask" in where[extra]:
            where = where[extra]
        states = bound.args[0]
        mask = where.get("attention_mask")
        of_prompt, of_later = (self._expanded(hidden, states)[:, None] for hidden in (self.hidden, self.later))
        turn = torch.searchsorted(torch.tensor(self.cut_at), torch.arange(states.shape[1]), right=True)
        hidden = torch.where(turn[:, None] > turn, of_later, of_prompt)
        where["attention_mask"] = hide(self._full(layer, mask, states), hidden)
        return bound.args, bound.kwargs

    def _expanded(self, hidden: Tensor, states: Tensor) -> Tensor:
        """`hidden` extended to the batch and length of the states; new columns are visible."""
        batch, length = states.shape[:2]
        hidden = hidden.repeat_interleave(batch // len(hidden), 0)
        return torch.cat([hidden, hidden.new_zeros(batch, length - hidden.shape[1])], 1)

    def _full(self, layer: nn.Module, mask: Tensor | None, states: Tensor) -> Tensor:
        """The explicit form of `mask`, which may be None, as [batch or 1, heads or 1, length, length]."""
        length = states.shape[1]
        attention = next((m for m in layer.modules() if hasattr(m, "is_causal")), None)
        if attention is None or (mask is not None and mask.ndim != 4):
            raise CannotJudgeError(f"layer {self.index}: no 4-D attention mask to hide columns of")
        if mask is not None:
            assert mask.shape[-2:] == (length, length), f"a KV cache is in use: mask {tuple(mask.shape)}"
            return mask
        everything = torch.ones(1, 1, length, length, dtype=torch.bool)
        implementation = attention.config._attn_implementation
        if implementation == "sdpa":
            return everything.tril() if attention.is_causal else everything
        assert implementation == "eager", implementation
        return torch.zeros(1, 1, length, length, dtype=states.dtype)


def hide(mask: Tensor, hidden: Tensor) -> Tensor:
    """`mask` (boolean: True sees; else additive), closed where `hidden` [batch, length, length] is True.

    A hidden token still sees itself: its row must not become empty, and nobody reads its result.
    """
    length = hidden.shape[1]
    closed = hidden[:, None] & ~torch.eye(length, dtype=torch.bool)
    if mask.dtype == torch.bool:
        return mask & ~closed
    return torch.where(closed, torch.finfo(mask.dtype).min, mask)


@torch.no_grad()
def oracle_logits(model: PreTrainedModel, inputs: Inputs, stages: Sequence[Stage], visual_ids: Sequence[int]) -> Tensor:
    """Logits [batch, seq, vocab] of the full sequence; only rows of tokens that every stage keeps are meaningful."""
    with masked(model, inputs, stages, visual_ids):
        return model(**inputs, use_cache=False).logits


def kept_rows(inputs: Inputs, stages: Sequence[Stage], visual_ids: Sequence[int]) -> list[Tensor]:
    """Per sample, the positions of the tokens that survive all stages (text and kept visual), without padding."""
    gone = dropped(inputs, stages, visual_ids, layer=10**6)
    real = inputs["attention_mask"].bool() if "attention_mask" in inputs else torch.ones_like(gone)
    return [row.nonzero()[:, 0] for row in real & ~gone]


def extended(inputs: Inputs, generated: Tensor, appended: Mapping[str, int] | None = None) -> dict[str, Tensor]:
    """Prompt + generated ids [batch, n] as one input; per-token inputs get 0 (`attention_mask` 1) or `appended`."""
    fill = {"attention_mask": 1, **(appended or {})}
    ids = inputs["input_ids"]
    out = dict(inputs, input_ids=torch.cat([ids, generated], 1))
    for name, value in inputs.items():
        if name != "input_ids" and value.shape == ids.shape and not value.is_floating_point():
            out[name] = torch.cat([value, torch.full_like(generated, fill.get(name, 0))], 1)
    return out


def positions_of_generate(model: PreTrainedModel, inputs: Inputs) -> Tensor:
    """The position ids that `generate` gives its prefill for these inputs (left padding, multimodal rotary)."""
    return model._prepare_position_ids_for_generation(inputs["input_ids"], dict(inputs))


@torch.no_grad()
def oracle_generate_logits(
    model: PreTrainedModel,
    inputs: Inputs,
    generated: Tensor,
    stages: Sequence[Stage],
    visual_ids: Sequence[int],
    appended: Mapping[str, int] | None = None,
    cut: bool = False,
) -> Tensor:
    """Logits [batch, n, vocab] from which a pruned `generate` must have taken each of the n generated ids.

    With `cut`, the generated tokens see the kept tokens alone in every layer.
    """
    sequence = extended(inputs, generated, appended)
    positions = positions_of_generate(model, sequence)
    with masked(model, sequence, stages, visual_ids, *[inputs["input_ids"].shape[1]] * cut):
        logits = model(**sequence, position_ids=positions, use_cache=False).logits
    return logits[:, -generated.shape[1] - 1 : -1]
