"""A method of a model replaced for a while: modules have hooks, their methods have none."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

from tokenprune.call_arguments import bound_arguments


class Replaced:
    """Puts something in place of one object's method, until it is removed.

    Args:
        owner: The object; without such a method nothing happens.
        name: The method.
        make: Makes the new one from what is there.
    """

    def __init__(self, owner: Any, name: str, make: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
        self.owner, self.name = owner, name
        self.before = vars(owner).get(name)  # somebody else's
        if hasattr(owner, name):
            vars(owner)[name] = make(getattr(owner, name))

    def remove(self) -> None:
        """Give the object back what it had."""
        vars(self.owner).pop(self.name, None)
        if self.before is not None:
            vars(self.owner)[self.name] = self.before


def listened_to(owner: Any, name: str, tell: Callable[[Mapping[str, Any]], None]) -> Replaced:
    """The same method, but ``tell`` gets its arguments by name before it runs, and none after it."""

    def make(own: Callable[..., Any]) -> Callable[..., Any]:
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

        return listening

    return Replaced(owner, name, make)
