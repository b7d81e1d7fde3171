"""The text of ``tokenprune show``: a method as YAML, and what was published for it, in comments."""

from __future__ import annotations

from typing import Any

import yaml

from tokenprune.methods.named import NamedMethod
from tokenprune.methods.published import Published


def method_text(shipped: NamedMethod, settings: Published | None) -> str:
    """A method as YAML that reads back; the rest is in comments.

    Args:
        shipped: The method.
        settings: The published settings that it shall have; None for its own, and a list of what was published.
    """
    lines = [shipped.description, shipped.paper]
    after = []
    if settings is not None:
        lines += [settings.sentence[:1].upper() + settings.sentence[1:], settings.note]
        if len(settings.budgets) > 1:
            after = ["other published budgets:", *(f"  {flow(budget)}" for budget in settings.budgets[1:])]
    elif shipped.published:
        after = ["published settings, printed in place by --model NAME:"]
        for entry in shipped.published:
            after.append(f"- {entry.model} ({entry.condition}): {flow(entry.settings)[1:-1]}")
            after += [f"  {line}" for line in (entry.source, entry.note) if line]
    method = shipped.method(model=None if settings is None else settings.model)
    return "".join([*(f"# {line}\n" for line in lines if line), method.to_yaml(), *(f"# {line}\n" for line in after)])


def flow(data: Any) -> str:
    """A value as YAML on one line."""
    return yaml.safe_dump(data, default_flow_style=True, sort_keys=False, width=float("inf")).strip()
