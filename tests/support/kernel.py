"""A kernel of IPython as our code sees it: it records what is displayed."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest


class Kernel:
    """What a cell shows.

    Attributes:
        bars: Every bar with its pictures, in their order.
    """

    def __init__(self) -> None:
        self.bars: list[list[Any]] = []

    def display(self, shown: Any, display_id: bool) -> Any:
        """Show an object; what is returned replaces it."""
        assert display_id
        pictures = [shown]
        self.bars.append(pictures)
        return SimpleNamespace(update=pictures.append)


def in_kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    """Let the rest of a test run in a kernel."""
    kernel = Kernel()
    shell = SimpleNamespace(kernel=kernel)
    ipython = SimpleNamespace(get_ipython=lambda: shell, display=SimpleNamespace(display=kernel.display))
    monkeypatch.setitem(sys.modules, "IPython", ipython)  # type: ignore[arg-type]
    return kernel
