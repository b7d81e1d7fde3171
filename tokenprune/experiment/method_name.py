"""Names of methods in experiment files, for editors and in errors."""

from __future__ import annotations

from pydantic import GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from tokenprune.core.registry import suggest
from tokenprune.methods.named import is_file_name, method_names


class MethodName:
    """Annotation for what may be, or is, the name of an installed method or of a file; only the JSON schema reads it.

    Args:
        alone: Whether the name can stand in place of the annotated object.
        more: Further names that are allowed.
    """

    def __init__(self, alone: bool = False, more: tuple[str, ...] = ()) -> None:
        self.alone, self.more = alone, more

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        names: JsonSchemaValue = {"enum": [*method_names(), *self.more], "type": "string"}
        files: JsonSchemaValue = {"pattern": r"\.ya?ml$", "type": "string"}
        return {"anyOf": [names, files, *([handler(schema)] if self.alone else [])]}


def is_random(method: str) -> bool:
    """Whether a method chooses tokens at random. The name decides: ``random`` or ``random-...``."""
    return method == "random" or method.startswith("random-")


def check_name(name: str, more: tuple[str, ...] = ()) -> str:
    """Check that a name is that of an installed method or of a YAML file.

    Args:
        name: The name.
        more: Further names that are allowed.

    Raises:
        ValueError: It is not.
    """
    known = [*method_names(), *more]
    if name not in known and not is_file_name(name):
        raise ValueError(f"unknown method {name!r}; {suggest(name, known)}")
    return name
