"""Runs parts of the authors' files from a checkout, without importing their whole package.

Their packages need versions of transformers, CUDA kernels and checkpoints that are not here. What chooses tokens is a
few functions of torch. Annotations are not evaluated, and decorators of the wanted definitions are left out.
"""

from __future__ import annotations
import __future__

import ast
import builtins
import textwrap
from pathlib import Path
from types import ModuleType
from typing import Any

ANNOTATIONS = __future__.annotations.compiler_flag


def definitions(checkout: Path, file: str, *names: str, **given: Any) -> dict[str, Any]:
    """Functions and classes of a file, compiled alone.

    Args:
        checkout: Folder of the authors' repository.
        file: Path in the repository.
        names: Names at the top of the file, or `Class.method` for one function of a class.
        given: What the definitions find as global names: `torch`, stubs of what is not installed. A name that is not
            given raises a `NameError` when it is used.

    Returns:
        The definitions by the last part of their name. They share one namespace, so they can call each other.

    Raises:
        KeyError: The file does not define a name.
    """
    path = checkout / file
    namespace: dict[str, Any] = {"__name__": f"published.{path.stem}", **given}
    tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    for name in names:
        node = _find(tree.body, name)
        node.decorator_list = []
        exec(compile(ast.Module([node], []), str(path), "exec", ANNOTATIONS), namespace)
    return {name.rpartition(".")[2]: namespace[name.rpartition(".")[2]] for name in names}


def _find(body: list[ast.stmt], name: str) -> Any:
    first, _, rest = name.partition(".")
    # the last definition is the one that a module ends up with
    for node in reversed(body):
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == first:
            return _find(node.body, rest) if rest else node
    raise KeyError(name)


def statements(checkout: Path, file: str, first: int, last: int, **given: Any) -> dict[str, Any]:
    """Run consecutive lines of a file: statements in the middle of a function that cannot run as a whole.

    Args:
        checkout: Folder of the authors' repository.
        file: Path in the repository.
        first: First line, counted from 1.
        last: Last line.
        given: The names that the statements read.

    Returns:
        All names after the last statement.
    """
    path = checkout / file
    lines = path.read_text(encoding="utf-8").splitlines()[first - 1 : last]
    code = "\n" * (first - 1) + textwrap.dedent("\n".join(lines))
    namespace: dict[str, Any] = dict(given)
    exec(compile(code, str(path), "exec", ANNOTATIONS), namespace)
    return namespace


class Stub(ModuleType):
    """Stands for a package that is not installed: every name in it is a class that does nothing."""

    def __getattr__(self, name: str) -> Any:
        """A class, which serves as base class, annotation and decorator alike."""
        if name.startswith("__"):
            raise AttributeError(name)
        made = type(name, (), {"__init__": lambda self, *args, **kwargs: None, "__call__": lambda self, it: it})
        setattr(self, name, made)
        return made


def module(checkout: Path, file: str, **given: Any) -> ModuleType:
    """Run a whole file as a module. What it imports relatively, or what is not installed, becomes a stub.

    Args:
        checkout: Folder of the authors' repository.
        file: Path in the repository.
        given: Names that replace those of the module once it has run.

    Returns:
        The module. It is not registered in `sys.modules`.
    """

    def importing(name: str, globals: Any = None, locals: Any = None, fromlist: Any = (), level: int = 0) -> Any:
        if level == 0:
            try:
                found = builtins.__import__(name, globals, locals, fromlist, 0)
                if all(hasattr(found, wanted) for wanted in fromlist or ()):
                    return found
            except ImportError:
                pass
        return Stub(name.partition(".")[0] if not fromlist else name)

    path = checkout / file
    made = ModuleType(f"published_{path.stem}")
    made.__dict__["__builtins__"] = {**vars(builtins), "__import__": importing}
    exec(compile(path.read_text(encoding="utf-8"), str(path), "exec", ANNOTATIONS), made.__dict__)
    vars(made).update(given)
    return made
