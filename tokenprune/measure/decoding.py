"""How the bench decodes: on a dynamic or a static cache, eagerly or compiled, as ``generate`` does."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import StaticCache

from tokenprune.core.call_arguments import cache_name

Inputs = dict[str, Tensor]
#: Graphs of one function: each budget of each method has other shapes.
GRAPHS = 64


class Decoding:
    """Runs the decode steps of one model.

    Args:
        model: A transformers model that generates.
        steps: Decode steps after each prefill.
        static: Whether the cache is static, with room for the prompt and the steps.
        compiled: Whether the steps are compiled, each shape as one graph; only with a static cache.
    """

    def __init__(self, model: Any, steps: int, static: bool = False, compiled: bool = False) -> None:
        self.model, self.steps, self.static = model, steps, static
        self._name = cache_name(model.forward)
        self._call: Callable[..., Any] = model
        if compiled:
            mode = "reduce-overhead" if model.device.type == "cuda" else "default"
            self._call = torch.compile(model.__call__, mode=mode, fullgraph=True, dynamic=False)

    def cache(self, prompt: int) -> dict[str, Any]:
        """The argument of a prefill that holds the cache; empty where the model makes its own.

        Args:
            prompt: Tokens of the prompt.
        """
        if not self.static:
            return {}
        config = self.model.config.get_text_config(decoder=True)
        return {self._name: StaticCache(config=config, max_cache_len=prompt + self.steps)}

    def step(self, token: Tensor, mask: Tensor, cache: Any) -> Any:
        """One decode step; returns the model's output.

        Args:
            token: The token of each sample, long ``[batch, 1]``.
            mask: Tokens without padding, long ``[batch, tokens so far]``.
            cache: The KV cache.
        """
        given: dict[str, Any] = {"attention_mask": mask, self._name: cache, **step_positions(self.model, mask)}
        if self.static:  # the mask is made outside of the graph
            made = self.model.prepare_inputs_for_generation(token, use_cache=True, **given)
            return self._call(**{name: value for name, value in made.items() if value is not None})
        return self._call(input_ids=token, **given, use_cache=True)


@contextmanager
def many_graphs() -> Iterator[None]:
    """Let Dynamo compile one function for the shapes of all series."""
    config: Any = torch._dynamo.config
    name = "recompile_limit" if hasattr(config, "recompile_limit") else "cache_size_limit"
    with config.patch(**{name: GRAPHS}):
        yield


def step_positions(model: Any, mask: Tensor) -> Inputs:
    """The positions of a decode step, where they go on from those of images in rows and columns (Qwen-VL).

    ``generate`` gives them; the model alone would give as many positions as the mask has tokens.
    """
    deltas = getattr(getattr(model, "base_model", model), "rope_deltas", None)
    if deltas is None:
        return {}
    positions = mask.sum(1, keepdim=True) - 1 + deltas.to(mask.device)
    return {"position_ids": positions.expand(3, *positions.shape)}


def step_bytes(model: Any, kv_bytes: int) -> int:
    """Bytes that a decode step reads: the weights of the decoder layers and of the head, and the KV cache."""
    modules = [*model.get_decoder().layers, model.get_output_embeddings()]
    weights: list[Tensor] = list({id(weight): weight for module in modules for weight in module.parameters()}.values())
    return kv_bytes + sum(weight.numel() * weight.element_size() for weight in weights)
