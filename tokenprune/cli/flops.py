"""``tokenprune flops``."""

from typing import Annotated, Any

import typer

from tokenprune.cli.options import ANY_MODEL, takes_one_budget
from tokenprune.cli.printing import AsJson, print_json


@takes_one_budget
def flops(
    *,
    model: Annotated[str, typer.Option(help=ANY_MODEL)] = "llava-1.5-7b",
    method: Annotated[str, typer.Option(help="A named method, or a YAML file with one.")] = "entropyprune",
    published: Annotated[
        bool, typer.Option("--published", help="Use the method's settings that were published for the model.")
    ] = False,
    budget: dict[str, Any],
    visual_tokens: Annotated[
        int | None, typer.Option(help="Visual tokens of the prompt; presets have a default.")
    ] = None,
    text_tokens: Annotated[int, typer.Option(help="Text tokens of the prompt.")] = 60,
    counted: Annotated[
        bool, typer.Option("--counted", help="Also count the operations of the real architecture.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Compute the FLOPs of a prefill, unpruned and pruned, by part of the model. No weights are read."""
    from tokenprune.cli.tables import print_estimate
    from tokenprune.measure.estimate import estimate, read_config
    from tokenprune.methods.named import find_shipped

    shipped = find_shipped(method)
    settings = shipped.settings_for(read_config(model)) if published else None
    chosen = shipped.method(**budget, model=settings.model if settings else None)
    result = estimate(model, chosen, text_tokens, visual_tokens, counted)
    if settings is not None:
        result["settings"] = settings.sentence
    if as_json:
        print_json(result)
    else:
        print_estimate(result)
