"""What a module of this package offers, and the transcripts that are recorded from it."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, cast

from torch import Tensor

FOLDER = Path(__file__).parent / "transcripts"
#: Plain JSON parameters of one comparison. The key `differs` says why ours does not give the same; without it, it does.
Case = dict[str, Any]
#: Kept indices (sorted), counts or a few rounded values, by name.
Result = dict[str, list[Any]]


@dataclass(frozen=True)
class Source:
    """Where the authors' code stands.

    Attributes:
        repository: Owner and name on GitHub.
        commit: Full number of the commit.
        file: Path in the repository.
        lines: First and last line of what runs, such as "12-80"; several ranges are separated by ", ".
    """

    repository: str
    commit: str
    file: str
    lines: str


class Published(Protocol):
    """One module of this package: a method whose published code can be run."""

    SOURCE: Source
    CASES: list[Case]

    def inputs(self, case: Case) -> dict[str, Tensor]:
        """The tensors of a case, from its seed alone."""

    def theirs(self, checkout: Path, case: Case) -> Result:
        """What the authors' code gives, run from a checkout of their repository."""

    def ours(self, case: Case) -> Result:
        """What our pruner, scorer or selector gives."""


def published(method: str) -> Published:
    """The module of a method."""
    return cast(Published, importlib.import_module(f"tests.published.{method.replace('-', '_')}"))


def text(method: str, source: Source, digest: str, cases: list[tuple[Case, Result]]) -> str:
    """The file of a transcript: JSON with one line per case, so that a change shows which case it touches.

    Args:
        method: The method's name.
        source: Where the authors' code stands.
        digest: SHA-256 of the lines that `source` names.
        cases: The cases, and what the authors' code gave for them.
    """
    head = json.dumps({"method": method, **asdict(source), "sha256": digest}, indent=1)[:-2]
    lines = [json.dumps({"case": case, "result": result}, separators=(",", ":")) for case, result in cases]
    return f"{head},\n" + ' "cases": [\n' + ",\n".join(lines) + "\n]}\n"


def transcripts() -> dict[str, Mapping[str, Any]]:
    """All transcripts by method."""
    found = (json.loads(path.read_text(encoding="utf-8")) for path in sorted(FOLDER.glob("*.json")))
    return {transcript["method"]: transcript for transcript in found}


def rounded(values: Tensor) -> list[float]:
    """Values with six significant digits."""
    return [float(f"{value:.6g}") for value in values.double().flatten().tolist()]
