"""Budgets that one number states, and the word for each: a keyword of ``load_method``, an option of the commands."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tokenprune.errors import ConfigError


@dataclass(frozen=True)
class Stated:
    """A budget that one number states.

    Attributes:
        keyword: The keyword; with dashes it is the option of the command line.
        budget: The name of the budget.
        field: The field of the budget that holds the number.
        meaning: What the number is, for helps and errors.
        words: The budget in words, with ``{}`` for the number; shares are in percent.
        measured: Whether the budget needs a measurement: only a tune can meet it, and no method has it.
    """

    keyword: str
    budget: str
    field: str
    meaning: str
    words: str
    measured: bool = False

    @property
    def option(self) -> str:
        """The option of the command line."""
        return "--" + self.keyword.replace("_", "-")

    def of(self, number: Any) -> dict[str, Any]:
        """The budget as configs have it."""
        return {"name": self.budget, self.field: number}

    def like(self, word: str) -> bool:
        """Whether a word may have meant this keyword: it is one of its words, or the field, or a slip of these."""
        return bool(difflib.get_close_matches(word, [*self.keyword.split("_"), self.field, self.keyword], cutoff=0.8))


#: Every such budget. The kind stands in the keyword: a number alone does not say what it counts.
STATED = {
    item.keyword: item
    for item in (
        Stated(
            "average_tokens",
            "layer_average",
            "tokens",
            "visual tokens, averaged over all layers",
            "{} tokens, layer average",
        ),
        Stated(
            "average_ratio",
            "layer_average",
            "ratio",
            "share of the visual tokens, averaged over all layers",
            "{} % of the tokens, layer average",
        ),
        Stated("keep_tokens", "keep_count", "tokens", "visual tokens kept after the last stage", "{} tokens kept"),
        Stated(
            "keep_ratio",
            "keep_ratio",
            "ratio",
            "share of the visual tokens kept after the last stage",
            "{} % of the tokens kept",
        ),
        Stated(
            "flops_reduction",
            "flops_reduction",
            "percent",
            "reduction of the prefill's FLOPs in percent",
            "{} % fewer FLOPs",
        ),
        Stated(
            "prefill_time",
            "prefill_time",
            "ratio",
            "measured prefill time as a share of the unpruned one's",
            "{} % of the prefill time",
            measured=True,
        ),
    )
}


def stated_budget(name: object, fields: Mapping[str, Any], where: str) -> dict[str, Any] | None:
    """A budget as configs have it, from its name and its fields, or from one keyword of :data:`STATED`.

    Args:
        name: The name of a budget, or None.
        fields: The fields of the budget of that name; without a name, one keyword with its number.
        where: What the budget is for, for messages.

    Returns:
        The budget; None if neither a name nor a field is given.

    Raises:
        ConfigError: The name is no text, fields stand without the name of their budget, a keyword stands beside another
            budget, or the budget has to be measured.
    """
    if name is not None and not isinstance(name, str):
        usable = ", ".join(item.keyword for item in STATED.values() if not item.measured)
        raise ConfigError(f"{where}: budget={name!r} is no name of a budget", f"give a name, or one of {usable}")
    keywords = [key for key in fields if key in STATED]
    if not keywords and name is not None:
        return {"name": name, **fields}
    if not fields:
        return None
    if not keywords:
        raise _unclear(*next(iter(fields.items())), where)
    stated = STATED[keywords[0]]
    if name is not None or len(fields) > 1:
        others = [f"budget={name!r}"] * (name is not None) + [key for key in fields if key != stated.keyword]
        raise ConfigError(
            f"{where}: {stated.keyword} states a budget by itself, and {others[0]} stands beside it",
            f'give one of the two, or budget="{stated.budget}" with its fields',
        )
    if stated.measured:
        raise ConfigError(
            f"{where}: {stated.keyword} is measured, and a method states what it keeps",
            "use tp.tune or `tokenprune tune`, which measure it for every candidate",
        )
    return stated.of(fields[stated.keyword])


def _unclear(field: str, value: Any, where: str) -> ConfigError:
    """The error for a field without its budget."""
    usable = [item for item in STATED.values() if not item.measured]
    likely = [item for item in usable if item.like(field)]
    if not likely:
        keywords = ", ".join(item.keyword for item in usable)
        return ConfigError(f"{where}: {field}={value!r} is the field of no budget", f"give one of {keywords}")
    ways = " or ".join(f"{item.keyword}={value!r} ({item.meaning})" for item in likely)
    return ConfigError(f"{where}: {field}={value!r} does not say what it counts", f"write {ways}")
