"""The fast part of the test suite (`pytest --fast`, `make test-fast`): which tests it runs.

Nothing is listed. Of every test function the first case runs. Two marks at the tests themselves change that:

* `@pytest.mark.slow`: the test, or this case of it, is left out.
* `@pytest.mark.each("name")`: one case runs for every value of the parameter `name`, or for every value of an attribute
  of it (`"cell.family"`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def fast(items: Iterable[pytest.Item]) -> list[pytest.Item]:
    """The items that `--fast` runs, in their order."""
    chosen, seen = [], set()
    for item in items:
        if item.get_closest_marker("slow") is not None:
            continue
        key = (item.path, getattr(item, "originalname", item.name), getattr(item, "cls", None), _values(item))
        if key not in seen:
            seen.add(key)
            chosen.append(item)
    return chosen


def _values(item: pytest.Item) -> tuple[str, ...]:
    """The values of the parameters that `each` names."""
    marks = [name for mark in item.iter_markers("each") for name in mark.args]
    params: dict[str, Any] = getattr(getattr(item, "callspec", None), "params", {})
    values = []
    for name in marks:
        parameter, *attributes = name.split(".")
        if parameter not in params:
            raise pytest.UsageError(
                f"{item.nodeid}: each({name!r}) names no parameter of the test; it has {', '.join(params) or 'none'}"
            )
        value = params[parameter]
        for attribute in attributes:
            value = getattr(value, attribute)
        values.append(repr(value))
    return tuple(values)
