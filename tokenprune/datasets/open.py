"""Opens the table that a path or name stands for."""

from collections.abc import Callable
from pathlib import Path

from tokenprune.core.hub import is_hub_name
from tokenprune.datasets.base import Table
from tokenprune.datasets.csv_file import CsvFile
from tokenprune.datasets.folder import ImageFolder, pictures
from tokenprune.datasets.huggingface import SAVED, HuggingFaceDataset
from tokenprune.datasets.json_file import JsonLines, json_table
from tokenprune.datasets.parquet import Parquet
from tokenprune.errors import ConfigError, MissingDataError, TokenPruneError

FILES: dict[str, Callable[[Path], Table]] = {
    ".jsonl": JsonLines,
    ".ndjson": JsonLines,
    ".json": json_table,
    ".csv": CsvFile,
    ".tsv": CsvFile,
    ".parquet": Parquet,
}
ALLOWED = f"use a file ({', '.join(FILES)}), a folder of pictures, or a Hugging Face dataset"


def open_table(data: str, split: str | None = None, config: str | None = None) -> Table:
    """The table of a file, a folder of pictures, or a dataset of Hugging Face (a name, or a local folder).

    Raises:
        ConfigError: The file has an unknown suffix, is empty, or cannot be read as what its suffix says.
        MissingDataError: There is no such file, folder or dataset, or a package that reads it is not installed.
    """
    table = _table(data, split, config)
    if len(table) == 0:
        raise ConfigError(f"data: {data} has no questions", "it needs at least one row below the column names")
    return table


def read_file(path: Path, reader: Callable[[Path], Table]) -> Table:
    """The table of a file, by a class of :data:`FILES`.

    Raises:
        ConfigError: See :func:`open_table`.
        MissingDataError: The file cannot be read, or a package is missing.
    """
    try:
        return reader(path)
    except TokenPruneError:
        raise
    except OSError as error:
        what = f"data: {path} cannot be read ({error.strerror or error})"
        raise MissingDataError(what, "check its permissions, and the disk") from error


def _table(data: str, split: str | None, config: str | None) -> Table:
    path = Path(data).expanduser()
    suffix = path.suffix.lower()
    if path.is_file():
        if suffix not in FILES:
            raise ConfigError(f"data: {data} has the unknown suffix {suffix!r}", ALLOWED)
        if split is not None or config is not None:
            raise ConfigError(f"split, config: {data} is a file and has neither", "omit them")
        return read_file(path, FILES[suffix])
    if path.is_dir() and not any((path / name).is_file() for name in SAVED) and pictures(path) and split is None:
        return ImageFolder(path)
    if path.is_dir():
        return HuggingFaceDataset(str(path), split, config)
    if suffix in FILES or not is_hub_name(data):
        raise MissingDataError(f"data: there is no file or folder {data!r}", ALLOWED)
    return HuggingFaceDataset(data, split, config)
