"""Print examples/experiment.schema.json, the schema of the examples; `make schema` writes the file.

It is what `tokenprune schema` prints where tokenprune and the distributions that the examples need are installed, and
no others: other plugins of this machine would add their names.
"""

from __future__ import annotations

from importlib import metadata
from importlib.metadata import EntryPoints
from pathlib import Path
from typing import Any
from unittest import mock

import yaml

from tokenprune.core import plugins
from tokenprune.experiment.config import json_schema

EXAMPLES = Path(__file__).parents[2] / "examples"
REAL = metadata.entry_points


def needed() -> set[str]:
    """Distributions that the examples require, and tokenprune itself."""
    files = (yaml.safe_load(path.read_text(encoding="utf-8")) for path in EXAMPLES.glob("*.yaml"))
    return {plugins.DISTRIBUTION}.union(*(data.get("requires", {}) for data in files))


def schema() -> str:
    """The schema without other plugins."""
    owners = needed()

    def entry_points(**params: Any) -> EntryPoints:
        return EntryPoints(point for point in REAL(**params) if point.dist is not None and point.dist.name in owners)

    with mock.patch.object(metadata, "entry_points", entry_points):
        plugins.refresh()
        text = json_schema()
    plugins.refresh()
    return text


if __name__ == "__main__":
    print(schema())
