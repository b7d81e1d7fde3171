"""Lists that a cell holds as a text, as Python or JSON writes them: an export to CSV leaves them so."""

import ast
import io
import json
import re
import tokenize
import warnings
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

from tokenprune.datasets.values import missing, short
from tokenprune.errors import SampleError

#: How a text begins that may be a list, a tuple or a mapping.
BEGIN = re.compile(r"\[|\(\s*['\"]|\{\s*['\"]|array\(")
#: How a text begins that can be nothing but a list of texts: no answer looks like that.
OF_TEXTS = re.compile(r"\[\s*['\"]")
UNKNOWN = {"nan", "NaN", "null", "None"}
PAIRS = {"[": "]", "(": ")", "{": "}"}
SPACES = {tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.COMMENT}


def listed(cell: str, role: str, where: str) -> Any:
    """The list or mapping that a text writes; None if the text does not look like one.

    Args:
        cell: The text.
        role: What it is, for messages.
        where: The row, for messages.

    Returns:
        A list or a dict, as JSON or Python reads it; a nan in it is None.

    Raises:
        SampleError: The text looks like a list and cannot be read as one.
    """
    cell = cell.strip()
    if not BEGIN.match(cell):
        return None
    for read in (json.loads, _python):
        try:
            value = read(cell)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(value, dict | list | tuple):
            return list(value) if isinstance(value, tuple) else value
    if not OF_TEXTS.match(cell) and not _closes_at_its_end(cell):
        return None  # "[a] and [b]"
    what = f"{where}: {role} looks like a list and cannot be read as one: {short(cell)}"
    raise SampleError(what, f"""write JSON: ["one", "two"]; or name another column: columns: {{{role}: NAME}}""")


def entries(value: object, split: Callable[[object], Sequence[object]], role: str, where: str) -> Sequence[object]:
    """The entries of a value that may be a list, or a text that writes one; none if it is missing.

    Args:
        value: The value.
        split: The entries of a value that writes no list in Python's or JSON's form.
        role: What it is, for messages.
        where: The row, for messages.

    Raises:
        SampleError: It is a text that looks like a list and cannot be read as one.
    """
    if isinstance(value, list | tuple):
        return value
    if missing(value):
        return ()
    read = listed(value, role, where) if isinstance(value, str) else None
    if read is None:
        return split(value)
    return read if isinstance(read, list) else [read]


def _closes_at_its_end(cell: str) -> bool:
    """Whether the first bracket of a text is closed by its last character."""
    start = next(place for place, letter in enumerate(cell) if letter in PAIRS)
    begin, end = cell[start], PAIRS[cell[start]]
    depth = 0
    for place in range(start, len(cell)):
        depth += (cell[place] == begin) - (cell[place] == end)
        if depth == 0:
            return place == len(cell) - 1
    return False


def _python(cell: str) -> Any:
    """The value of a Python literal.

    Raises:
        ValueError: Two texts stand side by side, as numpy prints them: Python would join them to one.
        SyntaxError: It is no expression.
    """
    try:
        tokens = [token.type for token in tokenize.generate_tokens(io.StringIO(cell).readline)]
    except tokenize.TokenError as error:
        raise ValueError(str(error)) from error
    tokens = [token for token in tokens if token not in SPACES]
    if (tokenize.STRING, tokenize.STRING) in pairwise(tokens):
        raise ValueError("two texts without a comma between them")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a backslash before a letter stays a backslash
        tree = ast.parse(cell, mode="eval")
    return ast.literal_eval(_Unknown().visit(tree))


class _Unknown(ast.NodeTransformer):
    """Replaces the name nan, which is no literal, by None."""

    def visit_Name(self, node: ast.Name) -> ast.expr:
        """None for a name that stands for nothing."""
        return ast.copy_location(ast.Constant(None), node) if node.id in UNKNOWN else node
