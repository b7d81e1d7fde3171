"""The imports between the package's modules; ``python -m tests.support.imports`` prints the diagram of the rooms."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "tokenprune"

#: Rooms that nearly every other one imports; arrows to them would hide the rest.
EVERYWHERE = {"core", "errors", "version", "__init__"}


def module_of(path: Path) -> str:
    """The dotted name of a file, without ``tokenprune``."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def imports_of(tree: ast.AST) -> Iterator[tuple[str, ast.stmt]]:
    """Every module that a tree imports, also inside functions, with its statement."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide where they point"
            yield from ((f"{node.module}.{alias.name}", node) for alias in node.names)


def own_imports() -> Iterator[tuple[str, str]]:
    """(importing module, imported module) within the package."""
    files = {module_of(path): path for path in PACKAGE.rglob("*.py")}
    for name, path in files.items():
        for target, _ in imports_of(ast.parse(path.read_text(encoding="utf-8"))):
            if target.partition(".")[0] != "tokenprune":
                continue
            dotted = target.removeprefix("tokenprune.") if "." in target else "__init__"
            while dotted not in files and "." in dotted:
                dotted = dotted.rpartition(".")[0]
            yield name, dotted if dotted in files else "__init__"


def room(module: str) -> str:
    """The first part of a module's name: a folder, or a file at the top."""
    return module.partition(".")[0]


def diagram() -> str:
    """The rooms' imports in Mermaid; an arrow is left out if a longer path implies it."""
    edges: dict[str, set[str]] = {}
    for one, other in own_imports():
        if room(one) != room(other) and not {room(one), room(other)} & EVERYWHERE:
            edges.setdefault(room(one), set()).add(room(other))

    def reachable(start: str) -> set[str]:
        return {start}.union(*(reachable(other) for other in edges.get(start, ())))

    lines = ["graph TD"]
    for one in sorted(edges):
        longer = set[str]().union(*(reachable(other) - {other} for other in edges[one]))
        lines += [f"  {one} --> {other}" for other in sorted(edges[one] - longer)]
    return "\n".join(lines)


if __name__ == "__main__":
    print(diagram())
