"""``tokenprune export``."""

from pathlib import Path
from typing import Annotated, Any

import typer

from tokenprune.cli.options import PublishedModel, takes_one_budget
from tokenprune.cli.outputs import check_folder
from tokenprune.cli.printing import print_written


@takes_one_budget
def export(
    *,
    method: Annotated[str, typer.Argument(help="A named method, or a YAML file with one, e.g. tuned.yaml.")],
    folder: Annotated[Path, typer.Argument(help="The folder that is written.")],
    model: PublishedModel = None,
    budget: dict[str, Any],
) -> None:
    """Write a method as a folder for the custom_generate argument of model.generate, to share on the hub."""
    from tokenprune.cli.show import settings_for
    from tokenprune.methods.exported import Exported
    from tokenprune.methods.named import find_shipped

    named = find_shipped(method)
    published = None if model is None else settings_for(named, model)
    exported = Exported(named, named.method(model=None if published is None else published.model, **budget))
    check_folder(folder)
    print_written(exported.write(folder))
