"""Names of what methods are compared with: the unpruned model, random choices, smaller pictures, the upper bound."""

#: The unpruned model in tables.
UNPRUNED = "unpruned"
#: The named method that reads a task's annotation of the foreground: an upper bound, and no method.
ORACLE = "oracle"
#: The model that is shown smaller pictures, in tables and among the methods of an experiment.
DOWNSAMPLED = "downsampled"
#: Layer averages that differ by no more than this share cost the same, in whatever is said about results.
SAME_COST = 0.05


def is_random(method: str) -> bool:
    """Whether a method chooses tokens at random. The name decides: ``random`` or ``random-...``."""
    return method == "random" or method.startswith("random-")


def is_reference(method: str) -> bool:
    """Whether methods are compared with this one at the same budget: random, smaller pictures, or the upper bound."""
    return is_random(method) or method in (DOWNSAMPLED, ORACLE)


def same_cost(one: float, other: float) -> bool:
    """Whether two layer averages are the same cost, nearly."""
    return abs(one - other) <= SAME_COST * max(one, other)
