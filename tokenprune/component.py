"""The base class of all components, and the field type that turns ``{"name": ...}`` into an instance."""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from tokenprune import plugins
from tokenprune.errors import TokenPruneError

#: Components whose schema is being written. A component inside itself is described by its name alone.
_open_schemas: ContextVar[tuple[type[BaseModel], ...]] = ContextVar("open_schemas", default=())


class Component(BaseModel):
    """A frozen, typed part of a configuration. Its fields are all of its settings; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=False)


class FromRegistry:
    """Annotation for a field that holds a component of one kind.

    The field accepts an instance, a name, or a mapping with ``name`` and the component's own fields. Errors name the
    path of the wrong key. The field is dumped as such a mapping, so a config can be written to YAML and read back.

    Args:
        kind: The kind of the component, e.g. ``"scorers"``.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        dump = core_schema.plain_serializer_function_ser_schema(self.dump)
        return core_schema.no_info_plain_validator_function(self.build, serialization=dump)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        components: list[JsonSchemaValue] = []
        registry = plugins.registry(self.kind)
        for name in registry.names():
            try:
                cls = registry.get(name)
            except TokenPruneError:
                continue  # a broken plugin must not prevent the schema; `tokenprune list` reports it
            components.append(component_schema(name, cls))
        names = [{"enum": registry.names(), "type": "string"}]
        return {"anyOf": [*names, *components]}

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
        # pydantic appends the path inside a ValidationError raised here to the path of this field
        return cls.model_validate(fields)

    def dump(self, value: Any) -> dict[str, Any]:
        """The mapping that :meth:`build` turns into an equal component."""
        return {"name": plugins.registry(self.kind).name_of(type(value)), **value.model_dump(mode="json")}


def component_schema(name: str, cls: type[BaseModel]) -> JsonSchemaValue:
    """The JSON schema of one component: ``name`` and its own fields; only ``name`` where it contains itself."""
    enclosing = _open_schemas.get()
    if cls in enclosing:
        return {"title": name, "type": "object", "properties": {"name": {"const": name}}, "required": ["name"]}
    token = _open_schemas.set((*enclosing, cls))
    try:
        schema = cls.model_json_schema()
    finally:
        _open_schemas.reset(token)
    schema.pop("title", None)
    properties = {"name": {"const": name}, **schema.pop("properties", {})}
    required = ["name", *schema.pop("required", [])]
    return {**schema, "title": name, "type": "object", "properties": properties, "required": required}
