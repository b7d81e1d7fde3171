"""FLOPs counted on the real architecture, with weights on the device ``meta``, to check the closed forms.

There are two independent counters. torch's ``FlopCounterMode`` sees every operation that runs. fvcore (an optional
dependency, the extra ``flops``) traces a module; it counts decoders only, as it cannot trace the control flow of vision
towers. Neither counts eigenvalues, sorting or softmax, so the FLOPs of selection have a formula of their own.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from tokenprune.core.optional import optional


def count_flops(call: Any) -> int:
    """FLOPs of all matrix products, convolutions and attention in ``call()``; a multiply-add counts as two."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops())


def decoder_counted(model: nn.Module, tokens: int) -> int:
    """FLOPs of a decoder's prefill of ``tokens`` tokens, by torch's counter.

    Args:
        model: A model on ``meta``.
        tokens: Length of the prompt.
    """
    decoder, embeds = _decoder(model, tokens)
    # with a cache, transformers builds the mask without reading values, which meta tensors do not have
    return count_flops(partial(decoder, inputs_embeds=embeds, use_cache=True))


def pruned_decoder_counted(model: nn.Module, tokens_per_layer: Sequence[int]) -> int:
    """FLOPs of a decoder whose layers see different numbers of tokens. All its layers must be equal."""
    layers = len(tokens_per_layer)
    all_layers = {tokens: decoder_counted(model, tokens) for tokens in set(tokens_per_layer)}
    return sum(all_layers[tokens] for tokens in tokens_per_layer) // layers


def vision_counted(model: Any, inputs: dict[str, Tensor]) -> int:
    """FLOPs of vision tower and projector, by torch's counter.

    Args:
        model: A model on ``meta``.
        inputs: Its inputs. Sizes and grids stay on the CPU, because the control flow depends on their values.
    """
    names = ("pixel_values", "image_sizes", "image_grid_thw")
    image_inputs = {name: inputs[name] for name in names if name in inputs}
    image_inputs["pixel_values"] = torch.empty_like(image_inputs["pixel_values"], device="meta", dtype=model.dtype)
    if "image_grid_thw" in image_inputs:  # otherwise rotary positions are computed on the CPU, where the grid is
        patches = image_inputs["pixel_values"].shape[0]
        image_inputs["position_ids"] = torch.empty(patches, 2, dtype=torch.long, device="meta")
    return count_flops(partial(model.get_image_features, **image_inputs))


def decoder_traced(model: nn.Module, tokens: int) -> int:
    """FLOPs of a decoder's prefill of ``tokens`` tokens, by fvcore.

    Args:
        model: A model on ``meta``, with eager or sdpa attention.
        tokens: Length of the prompt.

    Raises:
        MissingDataError: fvcore is not installed.
    """
    fvcore = optional("fvcore.nn", "the second counter", "flops")
    decoder, embeds = _decoder(model, tokens)
    analysis = fvcore.FlopCountAnalysis(_DecoderOfEmbeddings(decoder), embeds)
    analysis.set_op_handle("aten::scaled_dot_product_attention", _attention)
    analysis.set_op_handle(**{f"aten::{name}": None for name in _NOT_COUNTED})
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
    return 2 * int(analysis.total())  # fvcore counts a multiply-add once


#: Operations of rotary embedding, norms, activations and masks. The closed form leaves them out, too.
_NOT_COUNTED = (
    *("add", "sub", "mul", "div", "neg", "pow", "rsqrt", "mean", "cos", "sin", "silu", "gelu", "softmax"),
    *("cat", "slice", "expand", "full", "where", "ge", "le", "lt", "arange", "cumsum", "repeat", "rsub", "ne", "to"),
)


def _attention(inputs: list[Any], outputs: list[Any]) -> int:
    """Both products of attention, in multiply-adds, from the traced shapes of query and key."""
    query, key = (value.type().sizes() for value in inputs[:2])
    batch, heads, rows, dim = query
    return int(2 * batch * heads * rows * key[-2] * dim)


class _DecoderOfEmbeddings(nn.Module):
    """A decoder as a module from embeddings to hidden states, because tracing needs tensors in and out."""

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, embeds: Tensor) -> Tensor:
        hidden: Tensor = self.decoder(inputs_embeds=embeds, use_cache=False).last_hidden_state
        return hidden


def _decoder(model: Any, tokens: int) -> tuple[nn.Module, Tensor]:
    """The decoder of a model, and embeddings ``[1, tokens, width]`` on ``meta``."""
    decoder = model.get_decoder()
    width = model.config.get_text_config(decoder=True).hidden_size
    return decoder, torch.empty(1, tokens, width, device="meta", dtype=model.dtype)
