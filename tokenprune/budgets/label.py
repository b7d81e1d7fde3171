"""The name of a budget in files, and the budget in words."""

from tokenprune.budgets.base import Budget
from tokenprune.budgets.stated import STATED, Stated
from tokenprune.core.plugins import registry


def budget_label(budget: Budget) -> str:
    """A budget as files and tables name it: its kind and its numbers, e.g. ``keep_ratio 0.33``."""
    name = registry("budgets").name_of(type(budget))
    values = [
        f"{value:g}" if isinstance(value, float) else str(value)
        for value in budget.model_dump(exclude_none=True).values()
        if value != ()
    ]
    return " ".join([name, *values])


def in_words(label: str) -> str:
    """A label as sentences and pictures say it, always with its kind: ``33 % of the tokens kept``.

    Args:
        label: The label. One that no number states, like that of a schedule, stays as it is, and so does
            ``layer_average 1``: it may be one token or all of them.
    """
    name, *values = label.split(" ")
    if not values or label == "layer_average 1":
        return label
    found = [stated for stated in STATED.values() if stated.budget == name and _fits(stated, values[0])]
    if len(found) != 1:
        return label
    (stated,) = found
    number = f"{100 * float(values[0]):.6g}" if stated.field == "ratio" else values[0]
    words = stated.words.format(number)
    words = words.replace("1 tokens", "1 token") if number == "1" else words
    return f"{words} of the decoder" if values[1:] == ["decoder"] else words


def _fits(stated: Stated, value: str) -> bool:
    """Whether a number may be that of a field: counts have digits only, and a share with only digits is 1."""
    try:
        float(value)
    except ValueError:
        return False
    return value.isdigit() if stated.field == "tokens" else stated.field == "percent" or float(value) <= 1
