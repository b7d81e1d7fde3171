"""The earlier turns of a conversation in a column of their own."""

from tokenprune.datasets.values import short, text
from tokenprune.errors import SampleError


def read_history(value: object, where: str) -> tuple[tuple[str, str], ...]:
    """Pairs of a question and its answer, from a list of lists of two texts; empty if there is none.

    Raises:
        SampleError: The value is something else, or a text is empty.
    """
    turns = () if value is None else value
    if not isinstance(turns, list | tuple) or not all(
        isinstance(turn, list | tuple) and len(turn) == 2 for turn in turns
    ):
        what = f"{where}: history is no list of pairs: {short(value)}"
        raise SampleError(what, 'write [["question", "answer"], ...], or columns: {history: null}')
    pairs = tuple((text(asked, "history", where), text(said, "history", where)) for asked, said in turns)
    if not all(asked and said for asked, said in pairs):
        raise SampleError(f"{where}: an earlier turn in history is empty", "write it, or remove the line")
    return pairs
