"""Reads the arguments of one decoder layer's calls, however the model passes them."""

import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from tokenprune.adapters.layer_signature import LayerSignature
from tokenprune.core.call_arguments import given_cache


class LayerCalls:
    """Reads the arguments of one decoder layer's calls.

    Args:
        module: The layer.
        signature: Names of the layer's arguments; an adapter can override it.
    """

    def __init__(self, module: nn.Module, signature: LayerSignature) -> None:
        self.signature = signature
        self._names = [
            name
            for name, parameter in inspect.signature(module.forward).parameters.items()
            if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
        ]

    def hidden(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
        """The hidden states ``[batch, rows, dim]``."""
        states: Tensor = args[0] if args else kwargs[self.signature.hidden_states]
        return states

    def others(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """All arguments but the hidden states, by name; the mapping may be the caller's own."""
        if len(args) == 1:  # how most models call their layers
            return kwargs
        named = {**dict(zip(self._names[1:], args[1:], strict=False)), **kwargs}
        named.pop(self.signature.hidden_states, None)
        return named

    def cache(self, others: Mapping[str, Any]) -> Any:
        """The KV cache, or None. Families call it by different names."""
        return given_cache(others)
