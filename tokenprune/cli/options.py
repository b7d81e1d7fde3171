"""Options that several commands have: budgets, and models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

from tokenprune.errors import ConfigError
from tokenprune.models.presets import PRESETS

#: Option -> the budget that it states, the budget's field, and the help.
BUDGETS = {
    "tokens": ("layer_average", "tokens", "Budget: visual tokens averaged over all layers"),
    "average": ("layer_average", "ratio", "The same budget as a share of the visual tokens"),
    "keep": ("keep_count", "tokens", "Budget: visual tokens kept after the last stage"),
    "ratio": ("keep_ratio", "ratio", "Budget: share of the visual tokens kept"),
    "reduction": ("flops_reduction", "percent", "Budget: reduction of the prefill's FLOPs in percent"),
    "time": ("prefill_time", "ratio", "Budget: measured prefill time as a share of the unpruned one's"),
}
MODEL = "A checkpoint's folder or hub name, or the name of a model that a plugin brings."
#: The help of commands that need no weights.
ANY_MODEL = MODEL.removesuffix(".") + f", or an architecture without weights: {', '.join(PRESETS)}."
Device = Annotated[str | None, typer.Option(help="Where the model runs: auto, cpu, cuda, cuda:1 ...")]
Precision = Annotated[
    str | None, typer.Option("--dtype", help="auto, float32 (fp32), bfloat16 (bf16), float16 (fp16).")
]


def budget_option(name: str, several: bool = False) -> Any:
    """The option of :data:`BUDGETS` with a name; ``several`` lets users repeat it."""
    return typer.Option(f"--{name}", help=BUDGETS[name][2] + ("; repeat for several." if several else "."))


def budgets(given: Mapping[str, Sequence[float] | None]) -> list[dict[str, Any]]:
    """The budgets that options state, as configs have them.

    Args:
        given: The values of each option; None where it is not given.
    """
    stated = [(*BUDGETS[name][:2], value) for name, values in given.items() for value in values or ()]
    return [{"name": budget, field: value} for budget, field, value in stated]


def one_budget(given: Mapping[str, float | None]) -> dict[str, Any]:
    """The budget that an option states, as keyword arguments of ``load_method``; empty if no option is given.

    Args:
        given: The value of each option that the command has; None where it is not given.

    Raises:
        ConfigError: Several are given.
    """
    found = budgets({name: [value] for name, value in given.items() if value is not None})
    if len(found) > 1:
        raise ConfigError("several budgets", f"give one of {', '.join(f'--{name}' for name in given)}")
    return {("budget" if key == "name" else key): value for budget in found for key, value in budget.items()}
