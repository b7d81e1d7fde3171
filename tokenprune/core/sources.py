"""What a class or function says of itself, read from its file: an import of it may take seconds, or fail."""

import ast
from functools import cache
from importlib.machinery import PathFinder
from importlib.util import find_spec
from pathlib import Path


def first_line(target: str) -> str:
    """The first line of the docstring of a class or function; empty where it has none.

    Args:
        target: Its location, as ``module:name``.

    Raises:
        LookupError: The module is not there, is no Python text, or does not define the name: says what is wrong.
    """
    module, _, name = target.partition(":")
    for node in _module(module).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            return (ast.get_docstring(node) or "").partition("\n")[0]
    raise LookupError(f"{module} does not define {name}")


def source_file(module: str) -> Path:
    """The file of a module. None of its packages is imported.

    Raises:
        LookupError: There is none.
    """
    top, *rest = module.split(".")
    try:
        spec = find_spec(top)
        for number in range(len(rest)):
            where = None if spec is None else spec.submodule_search_locations
            full = ".".join([top, *rest[: number + 1]])
            spec = None if where is None else PathFinder.find_spec(full, list(where))
    except (ImportError, ValueError) as error:
        raise LookupError(f"{module}: {error}") from error
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        raise LookupError(f"No module named {module!r}" if spec is None else f"{module} has no Python source")
    return Path(spec.origin)


@cache
def _module(module: str) -> ast.Module:
    try:
        return ast.parse(source_file(module).read_bytes())
    except (OSError, SyntaxError, ValueError) as error:
        raise LookupError(f"{module}: {type(error).__name__}: {error}") from error
