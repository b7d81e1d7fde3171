"""Options that several commands have: budgets, models, and workers."""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer
import yaml

from tokenprune.budgets.stated import STATED
from tokenprune.core.text import one_line
from tokenprune.errors import ConfigError
from tokenprune.models.presets import PRESETS

MODEL = "A checkpoint's folder or hub name, or the name of a model that a plugin brings."
#: The help of commands that need no weights.
ANY_MODEL = MODEL.removesuffix(".") + f", or an architecture without weights: {', '.join(PRESETS)}."
#: The option of commands that can take the settings published for a model.
PublishedModel = Annotated[
    str | None,
    typer.Option(help=f"Use the settings published for this model: a name that `show METHOD` lists, or: {ANY_MODEL}"),
]
Device = Annotated[str | None, typer.Option(help="Where the model runs: auto, cpu, cuda, cuda:1 ...")]
Precision = Annotated[
    str | None, typer.Option("--dtype", help="auto, float32 (fp32), bfloat16 (bf16), float16 (fp16).")
]
ExecutorName = Annotated[
    str | None, typer.Option(help="Share the work among workers: local, ray, submitit, or '{name: local, gpus: 2}'.")
]
NumberOfWorkers = Annotated[
    int | None, typer.Option("--workers", help="How many workers. [default: one per GPU of the machine, or 1]")
]


def budget_option(keyword: str, several: bool = False) -> Any:
    """The option for a keyword of :data:`~tokenprune.budgets.stated.STATED`; ``several`` lets users repeat it."""
    stated = STATED[keyword]
    return typer.Option(stated.option, help=f"Budget: {stated.meaning}" + ("; repeat for several." if several else "."))


def options_of(*keywords: str) -> str:
    """The options for several keywords in a sentence: ``--average-tokens, --average-ratio or --keep-tokens``."""
    *names, last = (STATED[keyword].option for keyword in keywords)
    return f"{', '.join(names)} or {last}"


def budgets(**given: Sequence[float] | None) -> list[dict[str, Any]]:
    """The budgets that options state, as configs have them.

    Args:
        given: The values of each option by its keyword; None where it is not given.
    """
    return [STATED[keyword].of(value) for keyword, values in given.items() for value in values or ()]


def takes_one_budget(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command an option for each budget that a method can have.

    Args:
        command: All of its parameters are for keywords only. ``budget`` gets the budget that is stated, as keyword
            arguments of ``load_method``; the options stand in its place.
    """
    stated = {keyword: item for keyword, item in STATED.items() if not item.measured}
    kinds = {"tokens": int | None}
    options = []
    for keyword, item in stated.items():
        kind: Any = Annotated[kinds.get(item.field, float | None), budget_option(keyword)]
        options.append(inspect.Parameter(keyword, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind))

    @functools.wraps(command)
    def with_options(**given: Any) -> None:
        budget = one_budget(**{keyword: given.pop(keyword) for keyword in stated})
        command(**given, budget=budget)

    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(command, eval_str=True).parameters.values():
        parameters += options if parameter.name == "budget" else [parameter]
    vars(with_options)["__signature__"] = inspect.Signature(parameters)
    return with_options


def one_budget(**given: float | None) -> dict[str, Any]:
    """The budget that an option states, as keyword arguments of ``load_method``; empty if no option is given.

    Args:
        given: The value of each option that the command has, by its keyword; None where it is not given.

    Raises:
        ConfigError: Several are given.
    """
    found = {keyword: value for keyword, value in given.items() if value is not None}
    if len(found) > 1:
        raise ConfigError("several budgets", f"give one of {options_of(*given)}")
    return found


def executor_of(text: str | None) -> Any:
    """What an option says of an executor: its name, or a mapping with its fields.

    Args:
        text: A name, or a mapping in YAML; None if the option is not given.

    Raises:
        ConfigError: It is no YAML.
    """
    if text is None:
        return None
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(
            f"--executor {text!r} is no YAML ({one_line(error)})", "write {name: local, gpus: 2}"
        ) from None
