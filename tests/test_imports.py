"""Imports point one way: every module belongs to a room, and a room imports only from rooms below it."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

from tests.support.imports import PACKAGE, diagram, imports_of, module_of, own_imports, room

#: From the bottom up. A room may import its own modules and those of the rooms before it.
ROOMS: tuple[tuple[str, ...], ...] = (
    ("errors", "version", "stats"),
    ("core", "ops", "tables"),
    ("drawing", "fingerprint", "flops", "signals"),
    ("output",),
    ("executors", "scorers", "budgets", "testing"),
    ("pruners", "adapters"),
    ("selectors",),
    ("config",),
    ("methods", "recording"),
    ("engine",),
    ("pictures",),
    ("run",),
    ("metrics", "datasets"),
    ("tasks",),
    ("models",),
    ("measure",),
    ("report",),
    ("tuning",),
    ("experiment",),
    ("harness",),
    ("__init__",),
    ("authoring", "cli"),
)
LEVEL = {room: level for level, rooms in enumerate(ROOMS) for room in rooms}

#: Heavy optional packages, and what starts slowly: the only imports allowed inside functions.
LAZY = {"matplotlib", "jinja2", "vl_convert", "fvcore", "PIL", "triton"}
#: What takes seconds to import. Modules that ``tokenprune COMMAND --help`` reads import it when they use it.
SLOW = {"torch", "transformers"}

ROOT = Path(__file__).parents[1]
#: Programs for somebody who wants figures or weights.
SCRIPTS = sorted([*ROOT.glob("benchmarks/**/*.py"), *ROOT.glob("plugins/*/training/*.py")])
#: What they import of ours. vLLM and its plugin are in an environment of their own.
OURS = {"tokenprune", "tokenprune_embedded", "tokenprune_cluster", "tests", "benchmarks"}


def test_every_module_has_a_room() -> None:
    rooms = {room(module_of(path)) for path in PACKAGE.rglob("*.py")}
    assert rooms == set(LEVEL)


def test_no_import_points_upward() -> None:
    upward = [
        f"{one} imports {other}"
        for one, other in own_imports()
        if room(one) != room(other) and LEVEL[room(other)] >= LEVEL[room(one)]
    ]
    assert not upward


def test_no_imports_in_a_circle() -> None:
    """Not even within a room."""
    edges: dict[str, set[str]] = {}
    for one, other in own_imports():
        if one != other:
            edges.setdefault(one, set()).add(other)
    done: set[str] = set()

    def walk(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path[path.index(module) :], module))
        if module in done:
            return
        for other in sorted(edges.get(module, ())):
            walk(other, (*path, module))
        done.add(module)

    for module in sorted(edges):
        walk(module, ())


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=module_of)
def test_imports_inside_functions_are_of_heavy_packages(path: Path) -> None:
    """Of such a package itself, or of the module that wraps it. A command may import what it needs when it runs."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    lazy = {target for function in functions for target, _ in imports_of(function)}
    allowed = LAZY | slow(module_of(path))
    assert {name for name in lazy if name.partition(".")[0] not in allowed and not wraps_heavy(name)} == set()


def slow(module: str) -> set[str]:
    """The packages that a module may import when it uses them, for the sake of ``tokenprune COMMAND --help``."""
    if room(module) == "cli":
        return {*SLOW, "tokenprune"}
    return SLOW if module == "models.presets" else set()


def wraps_heavy(target: str) -> bool:
    """Whether an imported name is of a module of ours that imports a heavy package itself."""
    path = PACKAGE.parent.joinpath(*target.split(".")[:-1]).with_suffix(".py")
    if not target.startswith("tokenprune.") or not path.is_file():
        return False
    tops = ast.parse(path.read_text(encoding="utf-8")).body
    return any(name.partition(".")[0] in LAZY for top in tops for name, _ in imports_of(top))


def test_only_optional_packages_are_imported_for_types() -> None:
    """``TYPE_CHECKING`` hides a circle, unless it stands for a package that may be missing or starts slowly.

    The face of the package imports its names when they are used.
    """
    hidden = set()
    for path in {*PACKAGE.rglob("*.py")} - {PACKAGE / "__init__.py"}:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
                module = module_of(path)
                hidden |= {target.partition(".")[0] for target, _ in imports_of(node)} - slow(module)
    assert hidden <= LAZY


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_scripts_import_what_there_is(path: Path) -> None:
    """Nothing imports them, and they run only when somebody asks: a name that has moved would be found no earlier."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in OURS:
            module = importlib.import_module(node.module)
            for name in node.names:
                if not hasattr(module, name.name):
                    importlib.import_module(f"{node.module}.{name.name}")


def test_the_architecture_page_shows_these_imports() -> None:
    page = (PACKAGE.parent / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert f"```mermaid\n{diagram()}\n```" in page, "print it again: python -m tests.support.imports"
