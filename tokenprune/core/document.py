"""What a YAML file says, and the line where it says it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from tokenprune.errors import ConfigError, MissingDataError

#: The tag of the key ``<<``, which takes over the keys of other mappings.
_MERGE = "tag:yaml.org,2002:merge"


@dataclass(frozen=True)
class Document:
    """A parsed YAML text, or a part of one.

    Attributes:
        data: What it says.
        name: Its source, for messages.
        node: Where it says it; None if unknown.
        replaced: Keys of the mapping whose values come from elsewhere, e.g. from options of a command: the file has no
            line for them.
    """

    data: Any
    name: str
    node: yaml.Node | None = field(default=None, repr=False, compare=False)
    replaced: frozenset[str] = frozenset()

    def line(self, path: Sequence[str | int]) -> int | None:
        """The line of a value, counted from 1, or of the innermost part around it that the text has.

        Args:
            path: The keys and places in lists that lead to it. What the text does not have is passed over.

        Returns:
            The line; None if the value comes from elsewhere.
        """
        if self.node is None or (path and path[0] in self.replaced):
            return None
        node, line = self.node, None
        for step in path:
            found = _step(node, step)
            if found is not None:
                node, line = found
        return line

    def part(self, *path: str | int) -> Document:
        """The value at a path of keys and places in lists, as a document of the same name."""
        data, node = self.data, self.node
        for step in path:
            data = data[step]
            found = None if node is None else _step(node, step)
            node = None if found is None else found[0]
        return Document(data, self.name, node)

    def over(self, given: Mapping[str, Any]) -> Document:
        """The document with some keys of its mapping replaced; one that holds no mapping stays as it is."""
        if not isinstance(self.data, Mapping):
            return self
        return replace(self, data={**self.data, **given}, replaced=self.replaced | given.keys())


def _step(node: yaml.Node, step: str | int) -> tuple[yaml.Node, int] | None:
    """The value below a key or at a place of a list, and its line; None if there is none."""
    if isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
        item: yaml.Node = node.value[step]
        return item, item.start_mark.line + 1
    if isinstance(node, yaml.MappingNode):
        for key, value in reversed(node.value):  # the keys of merged mappings stand before those of the mapping itself
            if key.value == str(step):
                return value, key.start_mark.line + 1
    return None


class _Loader(yaml.SafeLoader):
    """YAML in which a key may stand once per mapping."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """The node of a mapping.

        Raises:
            yaml.YAMLError: A key stands twice; without this check the last one would win in silence.
        """
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != _MERGE:
                if (key.tag, key.value) in lines:
                    raise yaml.constructor.ConstructorError(
                        problem=f"the key {key.value!r} stands twice, first in line {lines[key.tag, key.value]}",
                        problem_mark=key.start_mark,
                    )
                lines[key.tag, key.value] = key.start_mark.line + 1
        return node


def parse_yaml(text: str, name: str) -> Document:
    """Parse YAML text.

    Args:
        text: The text.
        name: Its source, for messages.

    Raises:
        ConfigError: The text is not YAML, or a key stands twice in one mapping.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        data = None if node is None else loader.construct_document(node)
        _check_finite(data)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or " ".join(str(error).split()) or "not YAML"
        raise ConfigError(
            f"{name}:{place} is not valid YAML ({problem})", "check indentation (spaces, no tabs), brackets and keys"
        ) from None
    except RecursionError:
        raise ConfigError(f"{name} contains itself, or is nested too deeply", "write it without anchors") from None
    except (ValueError, LookupError, TypeError, AttributeError) as error:  # a date, or a tag, with a wrong value
        raise ConfigError(f"{name} is not valid YAML ({error})", "check its dates and tags, or quote them") from None
    return Document(data, name, node)


def _check_finite(data: Any) -> None:
    """Raise RecursionError for a structure that contains itself."""
    items = data.values() if isinstance(data, dict) else data if isinstance(data, list) else ()
    for item in items:
        _check_finite(item)


def read_yaml(path: str | Path) -> Document:
    """Parse a YAML file.

    Raises:
        MissingDataError: The file does not exist or cannot be read.
        ConfigError: It is not YAML, or a key stands twice in one mapping.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise MissingDataError(f"no such config file: {path}", "check the path") from None
    except IsADirectoryError:
        raise MissingDataError(f"{path} is a folder, not a config file", "give a YAML file") from None
    except UnicodeDecodeError:
        raise MissingDataError(f"{path} is not a text file in UTF-8", "give a YAML file, saved as UTF-8") from None
    except (OSError, ValueError) as error:
        raise MissingDataError(
            f"cannot read config file {str(path)!r} ({error})", "check that it is a readable file"
        ) from None
    return parse_yaml(text, str(path))
