"""``tokenprune show``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml

from tokenprune.cli.options import PublishedModel
from tokenprune.cli.printing import AsJson, print_json

if TYPE_CHECKING:  # helps answer at once: what needs torch is imported where it is used
    from tokenprune.methods.named import NamedMethod
    from tokenprune.methods.published import Published


def show(
    method: Annotated[str, typer.Argument(help="A named method, or a YAML file with one.")],
    model: PublishedModel = None,
    as_json: AsJson = False,
) -> None:
    """Print a method as YAML, with all fields, and the settings that its authors published for single models."""
    from tokenprune.cli.as_json import method_data
    from tokenprune.methods.named import find_shipped

    shipped = find_shipped(method)
    settings = None if model is None else settings_for(shipped, model)
    if as_json:
        print_json(method_data(shipped, settings))
    else:
        print(method_text(shipped, settings), end="")


def settings_for(shipped: NamedMethod, model: str) -> Published:
    """The published settings for a model: an entry's name, or what has a config."""
    from tokenprune.measure.estimate import read_config
    from tokenprune.models.named import is_known

    names = {entry.model.lower() for entry in shipped.published}
    return shipped.settings_for(read_config(model) if is_known(model) and model.lower() not in names else model)


def method_text(shipped: NamedMethod, settings: Published | None) -> str:
    """A method as YAML that reads back; the rest is in comments.

    Args:
        shipped: The method.
        settings: The published settings that it shall have; None for its own, and a list of what was published.
    """
    from tokenprune.budgets.label import budget_label, in_words

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
    lines.append(f"Budget: {in_words(budget_label(method.budget))}")
    return "".join([*(f"# {line}\n" for line in lines if line), method.to_yaml(), *(f"# {line}\n" for line in after)])


def flow(data: Any) -> str:
    """A value as YAML on one line."""
    return yaml.safe_dump(data, default_flow_style=True, sort_keys=False, width=float("inf")).strip()
