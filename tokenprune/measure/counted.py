"""FLOPs counted on the real architecture, with weights on the device ``meta``: what the closed forms are held against.

Two independent counters: torch's ``FlopCounterMode``, which sees every operation that runs, and fvcore, which traces a
module (an optional dependency: the extra ``flops``). fvcore cannot trace a vision tower's or a whole model's control
flow; it counts decoders. Neither counts eigenvalues, sorting or softmax: selection has its own formula.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from tokenprune.errors import MissingDataError


def count_flops(call: Any) -> int:
    """Matrix products, convolutions and attention of whatever runs in ``call()``, two FLOPs per multiply-add."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops())


def decoder_counted(model: nn.Module, tokens: int) -> int:
    """A decoder's prefill of ``tokens`` tokens by torch's counter.

    Args:
        model: A model on ``meta``.
        tokens: Length of the prompt.
    """
    decoder, embeds = _decoder(model, tokens)
    # with a cache the mask is made without looking at values, which meta tensors do not have
    return count_flops(partial(decoder, inputs_embeds=embeds, use_cache=True))


def pruned_decoder_counted(model: nn.Module, tokens_per_layer: Sequence[int]) -> int:
    """The same where layers see different numbers of tokens; all layers of these decoders cost alike."""
    layers = len(tokens_per_layer)
    whole = {tokens: decoder_counted(model, tokens) for tokens in set(tokens_per_layer)}
    return sum(whole[tokens] for tokens in tokens_per_layer) // layers


def vision_counted(model: Any, inputs: dict[str, Tensor]) -> int:
    """Vision tower and projector by torch's counter.

    Args:
        model: A model on ``meta``.
        inputs: Its inputs; sizes and grids stay on the CPU, for they decide the control flow.
    """
    names = ("pixel_values", "image_sizes", "image_grid_thw")
    given = {name: inputs[name] for name in names if name in inputs}
    given["pixel_values"] = torch.empty_like(given["pixel_values"], device="meta", dtype=model.dtype)
    if "image_grid_thw" in given:  # rotary positions would be computed where the grid is, not where the weights are
        patches = given["pixel_values"].shape[0]
        given["position_ids"] = torch.empty(patches, 2, dtype=torch.long, device="meta")
    return count_flops(partial(model.get_image_features, **given))


def decoder_traced(model: nn.Module, tokens: int) -> int:
    """A decoder's prefill of ``tokens`` tokens by fvcore.

    Args:
        model: A model on ``meta``, with eager or sdpa attention.
        tokens: Length of the prompt.

    Raises:
        MissingDataError: fvcore is not installed.
    """
    try:
        from fvcore.nn import FlopCountAnalysis
    except ImportError:
        raise MissingDataError("fvcore is not installed", "pip install 'tokenprune-mllm[flops]'") from None
    decoder, embeds = _decoder(model, tokens)
    analysis = FlopCountAnalysis(_Embeds(decoder), embeds)
    analysis.set_op_handle("aten::scaled_dot_product_attention", _attention)
    analysis.set_op_handle(**{f"aten::{name}": None for name in _CHEAP})
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
    return 2 * int(analysis.total())  # fvcore counts a multiply-add once


#: What rotary embedding, norms, activations and masks are made of: not counted, as in the closed form.
_CHEAP = (
    *("add", "sub", "mul", "div", "neg", "pow", "rsqrt", "mean", "cos", "sin", "silu", "gelu", "softmax"),
    *("cat", "slice", "expand", "full", "where", "ge", "le", "lt", "arange", "cumsum", "repeat", "rsub", "ne", "to"),
)


def _attention(inputs: list[Any], outputs: list[Any]) -> int:
    """Both products of attention, in multiply-adds, from the traced shapes of query and key."""
    query, key = (value.type().sizes() for value in inputs[:2])
    batch, heads, rows, dim = query
    return int(2 * batch * heads * rows * key[-2] * dim)


class _Embeds(nn.Module):
    """A decoder called with embeddings, as tracing wants it: tensors in, tensors out."""

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, embeds: Tensor) -> Tensor:
        hidden: Tensor = self.decoder(inputs_embeds=embeds, use_cache=False).last_hidden_state
        return hidden


def _decoder(model: Any, tokens: int) -> tuple[nn.Module, Tensor]:
    decoder = model.get_decoder()
    width = model.config.get_text_config(decoder=True).hidden_size
    return decoder, torch.empty(1, tokens, width, device="meta", dtype=model.dtype)
