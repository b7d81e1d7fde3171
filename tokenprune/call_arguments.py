"""Arguments of a call by name. Imports nothing of tokenprune."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any


def bound_arguments(forward: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call by name, ``**kwargs`` flattened in.

    Args:
        forward: What is called, bound to its object.
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
