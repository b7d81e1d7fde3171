"""Commands in tests name the toy model and task as others name theirs."""

from __future__ import annotations

from tests.support.toy_distribution import toy_installed

__all__ = ["toy_installed"]
