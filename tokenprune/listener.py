"""A hook for methods: modules have hooks, the methods of a model that run its vision tower have none."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

from tokenprune.adapters.base import bound_arguments


class Listener:
    """Tells what a method of an object is called with, until it is removed.

    Args:
        owner: The object; without such a method nothing happens.
        name: The method.
        tell: Called with the arguments by name before the method runs, and with none after it.
    """

    def __init__(self, owner: Any, name: str, tell: Callable[[Mapping[str, Any]], None]) -> None:
        self.owner, self.name = owner, name
        self.before = vars(owner).get(name)  # somebody else's
        own = getattr(owner, name, None)
        if own is None:
            return

        # the class knows the arguments' names, also where somebody's wrapper does not
        described = getattr(type(owner), name, None)
        named = own if described is None else described.__get__(owner)

        @functools.wraps(named)  # transformers reads its signature
        def listening(*args: Any, **kwargs: Any) -> Any:
            tell(bound_arguments(named, args, kwargs))
            try:
                return own(*args, **kwargs)
            finally:
                tell({})

        vars(owner)[name] = listening

    def remove(self) -> None:
        """Give the object its method back."""
        vars(self.owner).pop(self.name, None)
        if self.before is not None:
            vars(self.owner)[self.name] = self.before
