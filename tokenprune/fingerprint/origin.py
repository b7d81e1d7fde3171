"""The origin of the results in a folder, beside their configuration: the model's weights, and the code."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import transformers

from tokenprune.errors import OutputError, TokenPruneWarning
from tokenprune.fingerprint.values import same

#: The file of a folder of results that holds its origin.
ORIGIN = "origin.json"


@dataclass(frozen=True)
class Origin:
    """The weights and the code that results are computed with.

    Attributes:
        model: The model's fingerprint; None if it is unknown.
        code: Component in words, e.g. ``metric 'anls'`` -> version of its code; None if it is unknown.
        transformers: The version of transformers. It may differ, and then often explains why a model does.
    """

    model: str | None = None
    code: Mapping[str, str | None] = field(default_factory=dict)
    transformers: str = transformers.__version__

    @classmethod
    def read(cls, stored: Any) -> Self:
        """The origin that a file holds. What it does not say is unknown, and so is all of a file that is missing."""
        kept = _mapping(stored)
        return cls(kept.get("model"), _mapping(kept.get("code")), str(kept.get("transformers", "of unknown version")))

    def stored(self) -> dict[str, Any]:
        """The content of the file :data:`ORIGIN`."""
        return {"model": self.model, "transformers": self.transformers, "code": dict(self.code)}

    def difference(self, other: Origin) -> tuple[str, str, str] | None:
        """Find the first known difference: its name, this origin's value and the other's; None for none."""
        for name, version in self.code.items():
            theirs = other.code.get(name)
            if version and theirs and version != theirs:
                return f"version of the {name}", version, theirs
        if same(self.model, other.model) is False:
            what = "model (its weights, dtype, adapters, config or attention)"
            return what, self._words, other._words
        return None

    def unknown(self, other: Origin) -> list[str]:
        """Names of what may differ, as one of the two origins does not know it."""
        names = [name for name in {**self.code, **other.code} if not (self.code.get(name) and other.code.get(name))]
        return ["weights"] * (same(self.model, other.model) is None) + [f"code of the {name}" for name in names]

    @property
    def _words(self) -> str:
        return f"fingerprint {self.model}, transformers {self.transformers}"

    def check(self, folder: Path, stored: Any) -> None:
        """Check that results of this origin may be added to those of a folder.

        Args:
            folder: The folder.
            stored: The content of its file :data:`ORIGIN`; None where it has none.

        Raises:
            OutputError: The weights or the code are others.

        Warns:
            TokenPruneWarning: It is unknown whether they are.
        """
        kept = Origin.read(stored)
        kept.refuse(self, folder)
        unknown = kept.unknown(self)
        if unknown:
            why = "an older version wrote the folder" if stored is None else "they could not be read"
            _warn(f"whether {folder} holds results of the same {' and '.join(unknown)} is unknown: {why}")

    def refuse(self, other: Origin, folder: Path) -> None:
        """Refuse an origin that is known to be another one than this one of a folder.

        Raises:
            OutputError: It is.
        """
        found = self.difference(other)
        if found is not None:
            what, old, new = found
            raise OutputError(
                f"{folder} holds results of another {what}: {old} there, {new} now",
                "choose another output folder, or delete that one",
            )

    def announce(self, folder: Path) -> None:
        """Say so if a new folder will not know what its results are computed with.

        Warns:
            TokenPruneWarning: The weights or the code cannot be read.
        """
        unknown = self.unknown(self)
        if unknown:
            _warn(
                f"{folder} does not record the {' and the '.join(unknown)}, which cannot be read: a later run cannot"
                " tell whether they are the same"
            )


def _warn(text: str) -> None:
    warnings.warn(text, TokenPruneWarning, stacklevel=3)


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
