"""``tokenprune export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tokenprune.cli.options import ANY_MODEL, budget_option, one_budget
from tokenprune.cli.outputs import check_folder
from tokenprune.cli.show import settings_for
from tokenprune.cli.tables import print_written
from tokenprune.methods.exported import Exported
from tokenprune.methods.named import find_shipped


def export(
    method: Annotated[str, typer.Argument(help="A named method, or a YAML file with one, e.g. tuned.yaml.")],
    folder: Annotated[Path, typer.Argument(help="The folder that is written.")],
    model: Annotated[
        str | None,
        typer.Option(
            help=f"Use the settings published for this model: a name that `show METHOD` lists, or: {ANY_MODEL}"
        ),
    ] = None,
    average_tokens: Annotated[int | None, budget_option("average_tokens")] = None,
    average_ratio: Annotated[float | None, budget_option("average_ratio")] = None,
    keep_tokens: Annotated[int | None, budget_option("keep_tokens")] = None,
    keep_ratio: Annotated[float | None, budget_option("keep_ratio")] = None,
    flops_reduction: Annotated[float | None, budget_option("flops_reduction")] = None,
) -> None:
    """Write a method as a folder for the custom_generate argument of model.generate, to share on the hub."""
    budget = one_budget(
        average_tokens=average_tokens,
        average_ratio=average_ratio,
        keep_tokens=keep_tokens,
        keep_ratio=keep_ratio,
        flops_reduction=flops_reduction,
    )
    named = find_shipped(method)
    published = None if model is None else settings_for(named, model)
    exported = Exported(named, named.method(model=None if published is None else published.model, **budget))
    check_folder(folder)
    print_written(exported.write(folder))
