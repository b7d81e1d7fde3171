"""The toy model and task as an installed distribution: found through entry points, also by other processes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tokenprune.core import plugins

METADATA = "Metadata-Version: 2.1\nName: tokenprune-toy\nVersion: 0\n"
ENTRY_POINTS = """\
[tokenprune.models]
toy = tests.support.toy:ToyModel

[tokenprune.tasks]
toy = tests.support.toy:ToyTask
"""


@pytest.fixture(scope="module")
def toy_installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Names ``toy`` of a model and a task, in this process and in those that it starts in the repository's folder."""
    site = tmp_path_factory.mktemp("site")
    info = site / "tokenprune_toy-0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(METADATA)
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    root = Path(__file__).parents[2]
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(site)
        patch.setenv("PYTHONPATH", os.pathsep.join([str(site), str(root), os.environ.get("PYTHONPATH", "")]))
        plugins.refresh()
        yield
    plugins.refresh()
