"""The budget that the options of a command state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenprune.errors import ConfigError

#: Option -> budget and its field.
BUDGETS = {
    "--tokens": ("layer_average", "tokens"),
    "--average": ("layer_average", "ratio"),
    "--keep": ("keep_count", "tokens"),
    "--ratio": ("keep_ratio", "ratio"),
    "--reduction": ("flops_reduction", "percent"),
}


def one_budget(options: Mapping[str, float | None]) -> tuple[str | None, dict[str, Any]]:
    """The name of a budget and its fields; None and no fields if no option is given.

    Args:
        options: The command's options and their values.

    Raises:
        ConfigError: Several are given.
    """
    given = {name: value for name, value in options.items() if value is not None}
    if len(given) > 1:
        raise ConfigError("several budgets", f"give one of {', '.join(options)}")
    for name, value in given.items():
        budget, field = BUDGETS[name]
        return budget, {field: value}
    return None, {}
