"""The base class of all components, and the field type that turns ``{"name": ...}`` into an instance."""

import difflib
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    ModelWrapValidatorHandler,
    ValidationError,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, ErrorDetails, InitErrorDetails, PydanticCustomError, core_schema

from tokenprune.core import plugins
from tokenprune.errors import ConfigError, TokenPruneError

#: Components whose schema is being written. A component inside itself is described by its name alone.
_open_schemas: ContextVar[tuple[type[BaseModel], ...]] = ContextVar("open_schemas", default=())


#: Words of pydantic that a file's author does not know, and what to say instead.
_WORDS = (("a valid tuple", "a list"), ("Tuple", "List"), ("a valid dictionary", "a mapping"))


#: What pydantic appends to the path of a value that may have several forms.
_FORMS = ("bool", "str", "int", "float", "constrained-str", "constrained-int", "constrained-float")
#: Types of errors whose messages need no more words.
_SAY_ALL = ("unknown_key", "invalid_key", "component_name", "component_form", "component_text", "missing")


def explain(
    error: ValidationError, where: str, line_of: Callable[[Sequence[str | int]], int | None] = lambda _: None
) -> str:
    """All problems of a pydantic error on one line, each with its path and the value that was given.

    Args:
        error: The error.
        where: The source of what was validated.
        line_of: A path -> its line in the source; None where it has none.
    """
    problems: dict[tuple[int | str, ...], tuple[float, str]] = {}  # path -> its line, and what is wrong
    items = error.errors()
    meant = {(*item["loc"][:-1], item["ctx"]["meant"]) for item in items if item["type"] == "unknown_key"}
    for item in items:
        loc, message = item["loc"], _message(item)
        deeper = [other for other in items if other["loc"][: len(loc)] == loc and other is not item]
        if item["type"] == "too_short" and deeper:
            continue  # a list whose items are wrong is also reported as empty
        if item["type"] == "missing" and loc in meant:
            continue  # its misspelled key is reported
        line = line_of((*loc, "name") if item["type"] == "component_name" else loc)
        if len(loc) > 1 and loc[-1] in _FORMS:
            loc = loc[:-1]
        if loc in problems:  # of another form
            message = _joined(problems[loc][1], message)
        problems[loc] = (line or math.inf, message)
    texts = [
        ("" if line == math.inf else f"line {line}: ") + (f"{path}: {message}" if (path := _path(loc)) else message)
        for loc, (line, message) in sorted(problems.items(), key=lambda problem: problem[1][0])
    ]
    return " ".join(f"{where}: {'; '.join(texts)}".split())


def _path(loc: Sequence[int | str]) -> str:
    """A path in words, e.g. ``methods[0].pruner``."""
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in loc).lstrip(".")


def _message(item: ErrorDetails) -> str:
    """What is wrong, with the value that was given."""
    kind, message = item["type"], item["msg"].removeprefix("Value error, ")
    if kind == "invalid_key":
        return f"the key {item['input']!r} is no text: write it in quotes, or remove it"
    if kind == "model_type":  # a mapping, a made component, or (methods) a name
        message = "Input should be a mapping"
    if kind in _SAY_ALL or (kind == "value_error" and isinstance(item["input"], Mapping)):
        return message  # a rule between fields names them
    for old, new in _WORDS:
        message = message.replace(old, new)
    if ", got " not in message:
        message = f"{message}, got {shorten(item['input'])}"
    if kind in ("int_type", "float_type") and _reads_as_number(item["input"]):
        message += " (a text: write the number without quotes, and 1e-3 as 1.0e-3)"
    return message


def _joined(first: str, second: str) -> str:
    """What two forms of a value should be."""
    start = "Input should be "
    if first.startswith(start) and second.startswith(start):
        return f"{first.rpartition(', got ')[0]} or {second.removeprefix(start)}"
    return f"{first}; {second}"


def _with_known_keys(error: ValidationError, names: Collection[str]) -> ValidationError:
    """The same error, in which a component's unknown keys name the key that was meant, or those that there are."""
    details = []
    for item in error.errors():
        kind, message, meant = item["type"], item["msg"], ""
        if kind == "extra_forbidden" and len(item["loc"]) == 1:
            kind, (meant, message) = "unknown_key", _meant(str(item["loc"][0]), names)
        known = {**item.get("ctx", {}), "message": message, "meant": item.get("ctx", {}).get("meant", meant)}
        custom = PydanticCustomError(kind, "{message}", known)
        details.append(InitErrorDetails(type=custom, loc=item["loc"], input=item["input"]))
    return ValidationError.from_exception_data(error.title, details)


def _meant(key: str, names: Collection[str]) -> tuple[str, str]:
    """The key that an unknown one stands for, or "", and the message."""
    near = difflib.get_close_matches(key.lower().replace("-", "_"), names, n=1, cutoff=0.6)
    if near:
        return near[0], f"unknown key, did you mean {near[0]!r}?"
    return "", f"unknown key; {f'use {_listed(names)}' if names else 'it takes none'}"


def _listed(names: Collection[str]) -> str:
    *others, last = names
    return f"{', '.join(others)} or {last}" if others else last


def shorten(value: object, width: int = 60) -> str:
    """The repr of a value, cut to ``width`` characters."""
    text = repr(value)
    return text if len(text) <= width else text[: width - 3] + "..."


def _reads_as_number(value: object) -> bool:
    """Whether a value is a text that Python reads as a number."""
    try:
        return isinstance(value, str) and isinstance(float(value), float)
    except ValueError:
        return False


def _make_strict(schema: Any) -> None:
    """Let the numbers and booleans of a core schema accept no other types. Schemas of other components are left."""
    if isinstance(schema, dict):
        if schema.get("type") in ("int", "float", "bool"):
            schema["strict"] = True
        for key, value in schema.items():
            if key not in ("metadata", "serialization", "default"):
                _make_strict(value)
    elif isinstance(schema, list | tuple):
        for item in schema:
            _make_strict(item)


def _unstorable(value: Any, path: str = "") -> str | None:
    """The path of the first text that UTF-8 files or paths cannot hold, or None."""
    if isinstance(value, str):
        return path if "\0" in value or any("\ud800" <= letter <= "\udfff" for letter in value) else None
    items: Any = ()
    if isinstance(value, Mapping):
        items = [(f"{path}.{key}", item) for key, item in value.items()]
    elif isinstance(value, list | tuple):
        items = [(f"{path}[{number}]", item) for number, item in enumerate(value)]
    return next((found for name, item in items if (found := _unstorable(item, name)) is not None), None)


class Component(BaseModel):
    """A frozen, typed part of a configuration. Its fields are all of its settings; unknown keys are errors.

    Numbers and booleans are strict: ``True`` is no number, and neither is ``"1"``. An int is a valid float.

    Raises:
        ConfigError: A field is invalid; the message is one line that names the path of every wrong key.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=False, allow_inf_nan=False)

    def __init__(self, /, **data: Any) -> None:
        cls = type(self)
        if not cls.__pydantic_complete__:  # pydantic would look for missing names in this frame, not in the caller's
            cls.model_rebuild(raise_errors=False, _parent_namespace_depth=3)
        try:
            super().__init__(**data)
        except ValidationError as error:
            raise ConfigError(explain(error, type(self).__name__)) from error

    # pydantic calls a custom __init__ also for nested models, whose errors would lose their path; this mark keeps it
    # to direct construction
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]

    def __getstate__(self) -> dict[Any, Any]:
        """The fields alone: what a component has worked out for itself, e.g. the rows of a file, is no part of it."""
        state = super().__getstate__()
        kept = {name: value for name, value in state["__dict__"].items() if name in type(self).model_fields}
        return {**state, "__dict__": kept}

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """The schema of pydantic, with strict numbers."""
        schema = handler(source)
        _make_strict(handler.resolve_ref_schema(schema))
        return schema

    @model_validator(mode="wrap")
    @classmethod
    def _keys_are_known(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """Say which key was meant by an unknown one: only the component knows its keys."""
        try:
            return handler(data)
        except ValidationError as error:
            if not any(item["type"] == "extra_forbidden" and len(item["loc"]) == 1 for item in error.errors()):
                raise
            raise _with_known_keys(error, cls.model_fields) from error

    @model_validator(mode="before")
    @classmethod
    def _texts_can_be_stored(cls, data: Any) -> Any:
        """Refuse texts that no file and no path can hold; the whole tree is checked at once."""
        path = _unstorable(data)
        if path is not None:
            raise PydanticCustomError(
                "component_text",
                "{path}: the text holds a NUL or another character that no file can hold; remove it",
                {"path": path.lstrip(".") or "the value"},
            )
        return data


class FromRegistry:
    """Annotation for a field that holds a component of one kind.

    The field accepts an instance, a name, or a mapping with ``name`` and the component's own fields. Errors name the
    path of the wrong key. The field is dumped as such a mapping, so a config can be written to YAML and read back.

    Args:
        kind: The kind of the component, e.g. ``"scorers"``.
        described: Whether the JSON schema describes the fields of each component; else it has their names alone. A
            schema describes all components wherever one can stand, so fields deep inside others leave them out.
    """

    def __init__(self, kind: str, described: bool = True) -> None:
        self.kind = kind
        self.described = described

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        dump = core_schema.plain_serializer_function_ser_schema(self.dump)
        return core_schema.no_info_plain_validator_function(self.build, serialization=dump)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        components: list[JsonSchemaValue] = []
        alone: list[str] = []  # names that stand for a whole component: it has no required fields
        registry = plugins.registry(self.kind)
        for name in registry.names():
            try:
                cls = registry.get(name)
            except TokenPruneError:
                continue  # a broken plugin must not prevent the schema; `tokenprune list` reports it
            if self.described:
                components.append(component_schema(name, cls))
            if not any(field.is_required() for field in cls.model_fields.values()):
                alone.append(name)
        if not self.described:
            names: JsonSchemaValue = {"enum": list(registry.names()), "type": "string"}
            components.append({"type": "object", "properties": {"name": names}, "required": ["name"]})
        return {"anyOf": [*([{"enum": alone, "type": "string"}] if alone else []), *components]}

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


def _inlined(value: Any, definitions: Mapping[str, Any], within: tuple[str, ...]) -> Any:
    """A schema with its definitions in place of the references to them: the schema that holds it has others.

    Args:
        value: The schema, or a part of it.
        definitions: The definitions by name.
        within: The definitions that the part stands in. One that holds itself is any mapping there.
    """
    if isinstance(value, list):
        return [_inlined(item, definitions, within) for item in value]
    if not isinstance(value, dict):
        return value
    name = str(value.get("$ref", "")).removeprefix("#/$defs/")
    if name in within:
        return {"type": "object"}
    if name in definitions:
        rest = {key: item for key, item in value.items() if key != "$ref"}
        return {**_inlined(definitions[name], definitions, (*within, name)), **rest}
    return {key: _inlined(item, definitions, within) for key, item in value.items()}


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
    schema = _inlined(schema, schema.pop("$defs", {}), ())
    properties = {"name": {"const": name}, **schema.pop("properties", {})}
    required = ["name", *schema.pop("required", [])]
    return {**schema, "title": name, "type": "object", "properties": properties, "required": required}
