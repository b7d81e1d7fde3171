"""The task that ``tokenprune data`` reads."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from tokenprune.config import Config
from tokenprune.core.component import FromRegistry
from tokenprune.core.document import read_yaml
from tokenprune.core.plugins import registry
from tokenprune.errors import ConfigError, MissingDataError
from tokenprune.tasks.base import Task

YAML = frozenset({".yaml", ".yml"})


class DataTask(Config):
    """The task of a command line, or of the file of an experiment or tune.

    Attributes:
        task: The task.
    """

    task: Annotated[Task, FromRegistry("tasks")]


def chosen_task(name: str, fields: dict[str, Any]) -> Task:
    """The task that an argument of the command line stands for, with some fields of it.

    Args:
        name: The file of an experiment or tune, the name of a task, or data for the task ``vqa``.
        fields: Fields that replace those in the file.

    Raises:
        ConfigError: The file has no task, or a field is wrong.
        MissingDataError: There is no such file.
    """
    if Path(name).suffix.lower() in YAML:
        if not Path(name).is_file():
            raise MissingDataError(f"there is no file {name!r}", "give an experiment, a tune, or data")
        loaded = read_yaml(Path(name))
        task = loaded.data.get("task") if isinstance(loaded.data, dict) else None
        if task is None:
            raise ConfigError(f"{name}: it has no task", "give the file of an experiment or a tune, or data")
        entry: dict[str, Any] = task if isinstance(task, dict) else {"name": task}
        return DataTask.from_document(replace(loaded, data={"task": {**entry, **fields}})).task
    entry = {"name": name} if name in registry("tasks").names() else {"name": "vqa", "data": name}
    return DataTask.from_dict({"task": {**entry, **fields}}, name).task
