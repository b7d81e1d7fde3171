"""Whose code raised an exception."""

from __future__ import annotations

import pytest

from tokenprune.core import blame
from tokenprune.core.blame import plugin_of


def raised(source: str, module: str) -> Exception:
    """What code of a module raises."""
    space = {"__name__": module}
    exec(compile(source, f"{module}.py", "exec"), space)
    try:
        space["run"]()  # type: ignore[operator]
    except Exception as error:
        return error
    raise AssertionError(source)


def test_the_plugin_whose_code_raised_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blame, "plugins_installed", lambda: {"theirs": "their-dist", "others": "other-dist"})
    source = "def run(): return {}['a']"
    assert plugin_of(raised(source, "theirs.metrics")) == "their-dist"
    assert plugin_of(raised(source, "theirsandmore")) is None
    assert plugin_of(raised(source, "tokenprune.made_up")) is None
    # also where it broke in a library that the plugin called wrongly
    assert plugin_of(raised("import json\ndef run(): json.loads('{')", "others")) == "other-dist"


def test_plugins_are_known_by_their_entry_points() -> None:
    assert all(owner != "tokenprune-mllm" for owner in blame.plugins_installed().values())
