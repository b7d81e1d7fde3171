"""Turns roles of docstrings, like those of Sphinx, into links of the site; mkdocs.yml names this file.

It also follows an import as Python does: `tokenprune.apply` is the function, and not the module of the same name.
"""

from __future__ import annotations

import re
from html import escape
from typing import Any

import griffe

ROLE = re.compile(r":(?:py:)?(?:attr|class|data|exc|func|meth|mod|obj):`(?P<target>[^`]+)`")


def named(target: str, scope: griffe.Object, modules: griffe.ModulesCollection) -> tuple[str, str]:
    """The whole path of what a role names, and how readers call it.

    Args:
        target: What stands in the role: a whole path, or a name that the scope knows. A leading ``~`` is ignored.
        scope: The object with the docstring.
        modules: All that is loaded.
    """
    path = target.lstrip("~")
    if not path.startswith("tokenprune"):
        try:
            path = scope.resolve(path)
        except griffe.NameResolutionError:
            return path, path
    try:
        found = modules[path]
        shown = path if found.is_module else path.removeprefix(f"{found.module.path}.")
    except (KeyError, griffe.AliasResolutionError, griffe.CyclicAliasError):
        shown = target.lstrip("~")
    return path, shown.rpartition(".")[2] if target.startswith("~") else shown


def meant(path: str, modules: griffe.ModulesCollection) -> str:
    """What an import takes: where a module and something in it share a name, what the package imported from it."""
    package, _, name = path.rpartition(".")
    try:
        return modules[package].imports.get(name, path) if package else path
    except KeyError:
        return path


class Roles(griffe.Extension):
    """Replaces the roles of all docstrings of a package. What the site does not document stays code without a link."""

    def on_package(self, *, pkg: griffe.Module, loader: griffe.GriffeLoader, **kwargs: Any) -> None:
        """Walk a package that was loaded."""
        self._walk(pkg, loader.modules_collection)

    def _walk(self, scope: griffe.Object, modules: griffe.ModulesCollection) -> None:
        if scope.docstring is not None:

            def link(role: re.Match[str]) -> str:
                path, shown = named(role["target"], scope, modules)
                return f'<autoref identifier="{escape(path)}" optional><code>{escape(shown)}</code></autoref>'

            scope.docstring.value = ROLE.sub(link, scope.docstring.value)
        for name, member in list(scope.members.items()):
            if not isinstance(member, griffe.Alias):
                self._walk(member, modules)
            elif (path := meant(member.target_path, modules)) != f"{scope.path}.{name}":
                scope.set_member(name, griffe.Alias(name, path, parent=scope))  # type: ignore[arg-type]
