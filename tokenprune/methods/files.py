"""The files of named methods: found through entry points, not read as methods. Nothing heavy is imported."""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from types import ModuleType

from tokenprune.core import plugins
from tokenprune.core.document import parse_yaml
from tokenprune.core.text import one_line
from tokenprune.errors import ConfigError


@dataclass(frozen=True)
class ShippedFile:
    """The file of a named method.

    Attributes:
        name: The method's name; that of the entry point where its package cannot be read.
        distribution: The distribution that ships it.
        file: Where it stands; None where its package cannot be read.
        problem: Why that cannot be read; None if it can.
    """

    name: str
    distribution: str
    file: Traversable | None
    problem: str | None = None

    def description(self) -> str:
        """The method in one sentence, as it stands in the file; empty where none does.

        Raises:
            ConfigError: The file cannot be read, or is no YAML.
        """
        assert self.file is not None
        try:
            data = parse_yaml(self.file.read_text(encoding="utf-8"), self.file.name).data
        except (OSError, ValueError) as error:  # a ConfigError is a ValueError
            raise ConfigError(one_line(error)) from error
        return str(data.get("description", "")) if isinstance(data, dict) else ""


def shipped_files() -> Iterator[ShippedFile]:
    """The files of all installed methods, those of tokenprune first."""
    for entry in plugins.discover_visible("tokenprune.methods"):
        try:
            package = entry.load()
            if not isinstance(package, ModuleType):
                raise ConfigError(f"{entry.target} is not a package")
            files = sorted(resources.files(package).iterdir(), key=lambda file: file.name)
        except Exception as error:
            yield ShippedFile(entry.name, entry.distribution, None, f"{entry.target}: {error}")
            continue
        for file in files:
            if file.name.endswith(".yaml"):
                yield ShippedFile(file.name.removesuffix(".yaml"), entry.distribution, file)
