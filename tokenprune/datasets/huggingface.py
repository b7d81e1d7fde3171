"""Datasets of Hugging Face, through the package datasets: by name, or in a local folder."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tokenprune.core.hub import NotOnHubError, ask_hub
from tokenprune.core.optional import optional
from tokenprune.core.registry import suggest
from tokenprune.core.text import one_line
from tokenprune.datasets.base import Table
from tokenprune.errors import ConfigError, MissingDataError

#: Files that ``save_to_disk`` writes into the folder of a dataset, and of a dataset with several splits.
SAVED = ("dataset_info.json", "dataset_dict.json")
BATCH = 1024  # rows of a single column that are read at once


class HuggingFaceDataset(Table):
    """One split of a dataset, mapped into memory by ``datasets``. Pictures stay encoded until they are read.

    Args:
        data: The name on the Hub, or a local folder.
        split: The split; needed if there are several.
        config: The configuration; needed if there are several.

    Raises:
        ConfigError: The split does not exist, or none is named and there are several.
        MissingDataError: There is no such dataset, or it cannot be loaded.
    """

    def __init__(self, data: str, split: str | None, config: str | None) -> None:
        loaded = one_split(load(data, config), data, split)
        self.name = f"{data}[{loaded.split}]" if loaded.split is not None else data
        self.folder = Path(data) if Path(data).is_dir() else Path()
        self.columns = tuple(loaded.column_names)
        self._features = {name: loaded.features[name] for name in self.columns}
        self._rows = loaded.with_format("arrow")  # as stored: nothing is decoded

    def __len__(self) -> int:
        return len(self._rows)

    def row(self, index: int) -> Mapping[str, object]:
        """The values of one row; class labels by their names."""
        values = self._rows[index].to_pylist()[0]
        return {name: self._named(name, value) for name, value in values.items()}

    def values(self, column: str) -> Iterator[object]:
        """One column's values of all rows."""
        for batch in self._rows.select_columns(column).iter(BATCH):
            yield from (self._named(column, value) for value in batch.column(0).to_pylist())

    def _named(self, column: str, value: object) -> object:
        name_of = getattr(self._features[column], "int2str", None)
        return value if name_of is None or value is None else name_of(value)


def load(data: str, config: str | None) -> Any:
    """The dataset, with all its splits."""
    local = Path(data).exists()
    missing = "" if local else f"data: there is no file or folder {data!r}, and "
    datasets = optional("datasets", f"{missing}a Hugging Face dataset")
    if not local:
        _check_hub(data, missing, Path(datasets.config.HF_DATASETS_CACHE))
    try:
        if any((Path(data) / name).is_file() for name in SAVED):
            return datasets.load_from_disk(data)
        return datasets.load_dataset(data, config)
    except Exception as error:  # the Hub's client, its HTTP library and the file systems have no common base
        raise MissingDataError(
            f"data: there is no file or folder {data!r}, and no dataset of that name can be loaded ({one_line(error)})",
            "check the path, or the dataset's name, its `config` and your access to it",
        ) from error


def _check_hub(data: str, missing: str, cache: Path) -> None:
    """Ask the hub once whether it has the dataset, as its client would try for minutes.

    Raises:
        MissingDataError: It does not, or it cannot be asked and the cache does not have the dataset.
    """
    try:
        silent = ask_hub(data, "dataset")
    except NotOnHubError as error:
        raise MissingDataError(f"{missing}{error}", "check the path, or the dataset's name and your access") from None
    if silent is not None and not (cache / data.replace("/", "___")).is_dir():
        raise MissingDataError(
            f"{missing}no dataset of that name can be loaded ({silent})", "check the path, or the dataset's name"
        )


def one_split(loaded: Any, data: str, split: str | None) -> Any:
    """The named split; the only one if none is named."""
    if not hasattr(loaded, "keys"):  # saved as a single split
        if split is not None and split != str(loaded.split):
            raise ConfigError(f"split: {data} is saved as the single split {loaded.split}, not {split!r}", "omit split")
        return loaded
    splits = list(loaded)
    if split is None and len(splits) > 1:
        raise ConfigError(f"split: {data} has the splits {', '.join(splits)}, and none is chosen", "name one")
    if split is not None and split not in splits:
        raise ConfigError(
            f"split: {data} has no split {split!r}", suggest(split, splits).replace("installed", "it has")
        )
    return loaded[split or splits[0]]
