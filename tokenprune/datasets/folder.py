"""A folder of pictures alone."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from tokenprune.datasets.base import Table

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"})


class ImageFolder(Table):
    """The pictures of a folder and of those inside it, sorted by path. The only column is ``image``."""

    columns = ("image",)
    names_files = True

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self.folder = path
        self._paths = pictures(path)

    def __len__(self) -> int:
        return len(self._paths)

    def row(self, index: int) -> Mapping[str, object]:
        """The path of one picture."""
        return {"image": self._paths[index]}

    def values(self, column: str) -> Iterator[object]:
        """The paths."""
        return iter(self._paths)

    def where(self, index: int) -> str:
        """The picture's path."""
        return str(self.folder / self._paths[index])

    def row_id(self, index: int) -> str:
        """The picture's path within the folder."""
        return self._paths[index]


def pictures(folder: Path) -> list[str]:
    """The paths of all pictures below a folder, relative to it, sorted."""
    found = (path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    return sorted(path.relative_to(folder).as_posix() for path in found)
