"""Arguments of a call by name, and the KV cache among them. Imports nothing of tokenprune."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from transformers.cache_utils import Cache

#: Names of the KV cache of a call and of an output: in transformers since 5.24, and before. Until 5.40 both are taken.
CACHE_NAMES = ("cache", "past_key_values")


def bound_arguments(forward: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Name the arguments of a call, ``**kwargs`` flattened in.

    Args:
        forward: The function that is called, bound to its object.
        args: The positional arguments.
        kwargs: The keyword arguments.
    """
    if not args:  # reading a signature takes longer than everything else in a decode step
        return dict(kwargs)
    names = [
        name
        for name, parameter in inspect.signature(forward).parameters.items()
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]
    return {**dict(zip(names, args, strict=False)), **kwargs}


def named_parameters(forward: Callable[..., Any]) -> list[str]:
    """The parameters of a function that have a name of their own: all but ``*args`` and ``**kwargs``."""
    return [
        name
        for name, parameter in inspect.signature(forward).parameters.items()
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]


def cache_name(forward: Callable[..., Any]) -> str:
    """The name of a forward's KV cache argument."""
    names = named_parameters(forward)
    return next((name for name in CACHE_NAMES if name in names), CACHE_NAMES[0])


def given_cache(arguments: Mapping[str, Any]) -> Any:
    """The KV cache that a call is given; None where it is given none.

    Under one of the usual names it may be anything, also what has to be refused. Under any other name a cache is known
    by its class.

    Args:
        arguments: The arguments of the call, by name.
    """
    for name in CACHE_NAMES:
        if arguments.get(name) is not None:
            return arguments[name]
    return next((value for value in arguments.values() if isinstance(value, Cache)), None)


def returned_cache(output: Any) -> Any:
    """The KV cache in the output of a forward, a mapping or a tuple; None where there is none.

    Args:
        output: The output of a model's forward; it may hold the output of another model (BLIP-2).
    """
    values = tuple(output.values()) if isinstance(output, Mapping) else output if isinstance(output, tuple) else ()
    own = next((value for value in values if isinstance(value, Cache)), None)
    return own if own is not None else next((c for c in map(returned_cache, values) if c is not None), None)
