"""The pytest plugin: chooses the tests, applies a method to their models, and writes what became of each.

``pytest -p applied.plugin --pruning MODE --outcomes FILE``, in a checkout of transformers.
"""

from __future__ import annotations

import random
import sys
import traceback
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tokenprune.errors import TokenPruneError

from . import allowances, chosen, geometry, methods, models, outcomes


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--pruning` and `--outcomes`."""
    parser.addoption("--pruning", choices=methods.MODES, required=True, help="what is applied")
    parser.addoption("--outcomes", type=Path, required=True, help="where the outcomes go, a line of JSON each")


def pytest_configure(config: pytest.Config) -> None:
    """Register the plugin of this run."""
    config.pluginmanager.register(Plugin(config.getoption("--pruning"), config.getoption("--outcomes")))


class Plugin:
    """One run of the tests.

    Args:
        mode: What is applied.
        file: Where the outcomes go.
    """

    def __init__(self, mode: methods.Mode, file: Path) -> None:
        self.mode, self.file = mode, file
        self.models = models.Models(methods.method(mode))

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[Any]) -> None:
        """Leave tests out, and change their classes."""
        kept = [item for item in items if chosen.chosen(item.nodeid.split("::", 1)[1])]
        config.hook.pytest_deselected(items=[item for item in items if item not in set(kept)])
        items[:] = kept
        geometry.widen({item.module for item in items})
        for case in {item.cls for item in items}:
            allowances.without_heads(case)
            if self.mode in ("half", "unsteady"):
                allowances.without_lengths(case)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, Any, Any]:
        """Run a test: the same random numbers in every mode, and its models in blocks."""
        seed_everything()
        self.models.begin(item.name)
        with models.watched(self.models):
            try:
                result = yield
            except BaseException:
                self.models.end(quiet=True)
                raise
            self.models.end()
            return result

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
        """Write what became of a test, or of a subtest."""
        report: Any = yield
        if report.when == "call" or report.outcome != "passed":
            outcomes.write(self.file, self._outcome(item, call, report))
        return report

    def _outcome(self, item: pytest.Item, call: pytest.CallInfo[None], report: Any) -> outcomes.Outcome:
        result, why = report.outcome, ""
        where: tuple[str, ...] = ()
        error = None if call.excinfo is None else call.excinfo.value
        refused = outcomes.refusal(error, TokenPruneError)
        if report.when == "setup":  # skipped, most likely: no model ran
            return outcomes.Outcome(outcomes.name_of(item.nodeid), result, str(error))
        if refused is not None:
            result, why = outcomes.REFUSED, f"{type(refused).__name__}: {refused}"
        elif error is not None and result == outcomes.FAILED:
            why, where = " ".join(f"{type(error).__name__}: {error}".split())[:400], frames(error)
        if self.models.left:
            result, why = outcomes.FAILED, f"left behind: {self.models.left[0]}"
        return outcomes.Outcome(
            outcomes.name_of(item.nodeid), result, why, where, self.models.drops, tuple(self.models.outputs)
        )


def frames(error: BaseException) -> tuple[str, ...]:
    """The innermost lines of a traceback, without the folders of this machine."""
    lines = traceback.extract_tb(error.__traceback__)[-6:]
    return tuple(f"{'/'.join(Path(line.filename).parts[-2:])}:{line.lineno} {line.name}" for line in lines)


def seed_everything() -> None:
    """Start all sources of random numbers anew, those of the tests' own modules among them."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    for name, module in list(sys.modules.items()):
        own = getattr(module, "global_rng", None) if name.startswith("tests.") else None
        if isinstance(own, random.Random):
            own.seed(0)
