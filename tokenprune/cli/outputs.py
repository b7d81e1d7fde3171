"""Where commands may write, found out before any work.

Below the working directory folders are made as they are needed. Elsewhere a file needs a folder that is there, and a
folder of results one to stand in: a mistyped path makes no trees of folders. The checks leave nothing behind.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile

from tokenprune.errors import OutputError


def check_writable(path: Path) -> None:
    """Check that a file can be written.

    Raises:
        OutputError: It cannot, or its folder is missing and not below the working directory.
    """
    _check_place(path, path.parent)
    try:
        with _folder(path.parent):
            existed = path.exists()
            path.open("a").close()
            if not existed:
                path.unlink()
    except OSError as error:
        raise OutputError(f"cannot write {path} ({error.strerror})", "choose another file") from None


def check_folder(path: Path) -> None:
    """Check that files can be written into a folder of results, which may have to be made.

    Raises:
        OutputError: They cannot, or the folder that it shall stand in is missing and not below the working directory.
    """
    _check_place(path, path.parent)
    try:
        with _folder(path), TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise OutputError(f"cannot write into {path} ({error.strerror})", "choose another folder") from None


def _check_place(path: Path, folder: Path) -> None:
    """Check that a folder is there, or may be made."""
    if path.parts and path.parts[0].startswith("~") and not Path(path.parts[0]).exists():
        raise OutputError(f"cannot write {path}: '~' stands for no folder here", "write the whole path")
    try:
        missing = [part for part in (folder, *folder.resolve().parents) if not part.exists()]
        outside = not folder.resolve().is_relative_to(Path.cwd())
    except OSError as error:  # a name that is too long, a folder that must not be read
        raise OutputError(f"cannot write {path} ({error.strerror})", "choose another place") from None
    if missing and outside:
        raise OutputError(
            f"cannot write {path}: there is no folder {missing[-1]}", "check the path, or make the folder first"
        )


@contextmanager
def _folder(folder: Path) -> Iterator[None]:
    """A folder that is there inside the block. What had to be made for it is removed."""
    made = [part for part in (folder, *folder.parents) if not part.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        for part in made:
            with suppress(OSError):
                part.rmdir()
