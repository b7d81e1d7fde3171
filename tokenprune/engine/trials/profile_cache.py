"""Entropy curves and verdicts of a model on its calibration samples, kept from one process to the next."""

import functools
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import transformers
from platformdirs import user_cache_path
from torch import nn

from tokenprune.errors import ConfigError, TokenPruneWarning
from tokenprune.fingerprint import fingerprint
from tokenprune.selectors.entropy_profile import EntropyProfile
from tokenprune.version import __version__


class ProfileCache:
    """The file of one model and its calibration samples. What has no fingerprint has no file, and is measured anew.

    Args:
        model: The model.
        calibration: Inputs as for ``model(**inputs)``.
        where: The folder; True for the user's cache folder, False for none.
    """

    def __init__(self, model: nn.Module, calibration: Sequence[Mapping[str, Any]], where: bool | Path) -> None:
        self._model, self._calibration, self._where = model, calibration, where

    @cached_property
    def model(self) -> str | None:
        """The model's fingerprint."""
        return fingerprint(self._model)

    @cached_property
    def file(self) -> Path | None:
        """Where the profile is kept; None where nothing is. Other versions of the code have other files."""
        if self._where is False or self.model is None:
            return None
        key = fingerprint(self.model, list(self._calibration), __version__, transformers.__version__)
        folder = self._where if isinstance(self._where, Path) else user_cache_path("tokenprune") / "entropy"
        return None if key is None else folder / f"{key}.json"

    def read(self) -> EntropyProfile | None:
        """The profile, if there is one that can be read."""
        if self.file is None:
            return None
        try:
            found = EntropyProfile.load(self.file) if self.file.is_file() else None
            if found is None or found.knows_tower:  # earlier versions measured the decoder alone
                return found
            self._drop()
        except ConfigError:
            self._drop()
        except OSError as error:
            _warn(self.file.parent, error.strerror or type(error).__name__)
        return None

    def _drop(self) -> None:
        """Remove an old or broken entry: it is measured again."""
        if self.file is not None:
            with suppress(OSError):
                self.file.unlink()

    def write(self, profile: EntropyProfile) -> None:
        """Keep a profile.

        Warns:
            TokenPruneWarning: The folder cannot be written; once per folder.
        """
        if self.file is not None:
            try:
                profile.save(self.file)
            except OSError as error:
                _warn(self.file.parent, error.strerror or type(error).__name__)


@functools.cache
def _warn(folder: Path, reason: str) -> None:
    """Say once per process that a folder keeps nothing."""
    warnings.warn(
        f"the cache folder {folder} cannot be used ({reason}): entropy curves and verdicts are not kept, and the next"
        " run measures them again; make the folder writable",
        TokenPruneWarning,
        stacklevel=3,
    )
