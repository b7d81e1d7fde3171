"""The base of everything a config can name, and the field type that turns ``{"name": ...}`` into an instance."""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from tokenprune import plugins
from tokenprune.errors import TokenPruneError

#: Components whose schema is being written: one that holds others of its kind stops at its own name.
_open_schemas: ContextVar[tuple[type[BaseModel], ...]] = ContextVar("open_schemas", default=())


class Component(BaseModel):
    """A frozen, typed piece of a method: its fields are its whole configuration; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=False)


class FromRegistry:
    """Annotation for a field that holds a component of one kind.

    Accepts an instance, a name, or a mapping with ``name`` and the component's own fields. Errors carry the
    path of the wrong key. Dumps back to the mapping, so a config survives a round trip through YAML.

    Args:
        kind: The registry's kind, e.g. ``"scorers"``.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        dump = core_schema.plain_serializer_function_ser_schema(self.dump)
        return core_schema.no_info_plain_validator_function(self.build, serialization=dump)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        choices: list[JsonSchemaValue] = []
        registry = plugins.registry(self.kind)
        for name in registry.names():
            try:
                cls = registry.get(name)
            except TokenPruneError:
                continue  # a broken plugin must not take the schema with it; `tokenprune list` names it
            choices.append(component_schema(name, cls))
        names = [{"enum": registry.names(), "type": "string"}]
        return {"anyOf": [*names, *choices]}

    def build(self, value: Any) -> Any:
        """Turn an instance, a name or a mapping into a component instance."""
        registry = plugins.registry(self.kind)
        if isinstance(value, registry.base):
            return value
        if isinstance(value, str):
            value = {"name": value}
        if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
            raise PydanticCustomError(
                "component_form",
                "expected a {kind}'s name or a mapping with 'name', got {got}",
                {"kind": registry.kind, "got": repr(value)},
            )
        fields = {key: item for key, item in value.items() if key != "name"}
        try:
            cls = registry.get(value["name"])
        except TokenPruneError as error:
            raise PydanticCustomError("component_name", "{message}", {"message": str(error)}) from error
        # a ValidationError raised here keeps its own path, appended to ours
        return cls.model_validate(fields)

    def dump(self, value: Any) -> dict[str, Any]:
        """The mapping that :meth:`build` would turn into an equal component."""
        return {"name": plugins.registry(self.kind).name_of(type(value)), **value.model_dump(mode="json")}


def component_schema(name: str, cls: type[BaseModel]) -> JsonSchemaValue:
    """The JSON schema of one component, with ``name`` added to its own fields (the name alone within itself)."""
    outer = _open_schemas.get()
    if cls in outer:
        return {"title": name, "type": "object", "properties": {"name": {"const": name}}, "required": ["name"]}
    token = _open_schemas.set((*outer, cls))
    try:
        inner = cls.model_json_schema()
    finally:
        _open_schemas.reset(token)
    inner.pop("title", None)
    properties = {"name": {"const": name}, **inner.pop("properties", {})}
    required = ["name", *inner.pop("required", [])]
    return {**inner, "title": name, "type": "object", "properties": properties, "required": required}
