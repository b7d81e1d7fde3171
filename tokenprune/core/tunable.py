"""Tunable fields: values worth trying, as data beside the fields of components.

A component says it in the annotation of a field::

    class MatrixEntropy(Scorer):
        source: Annotated[Literal["query", "key"], Tunable("query", "key")] = "query"
        layer: Annotated[TowerLayerNumber, TunableLayer(0.5, 1.0)] = -2

This holds for components of plugins, too: nothing is registered. A field that holds components is looked into, so the
fields of a pruner's scorer are found below the pruner.
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar, get_args

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from tokenprune.core.component import Component, shorten
from tokenprune.errors import ConfigError

C = TypeVar("C", bound=Component)


class Tunable:
    """Annotation of a field: the values worth trying beside its own.

    Annotate the whole field, not a part of its type: ``Annotated[float | None, Tunable(None, 0.5)]``.

    Args:
        values: The values, a few; in a field of components also names or mappings with ``name``.

    Raises:
        ConfigError: There are no values.
    """

    def __init__(self, *values: Any) -> None:
        if not values:
            raise ConfigError("Tunable() has no values", "give the values that are worth trying")
        self.values = values

    def __repr__(self) -> str:
        return f"Tunable({', '.join(map(repr, self.values))})"


class TunableLayer:
    """Annotation of a field with a layer of the vision tower: the layers worth trying, as shares of the tower's depth.

    A share is rounded to the nearest layer, counted from 0; halves are rounded up, and 1 is the last layer. With 24
    layers 1/3 is layer 8, with six layers it is layer 2.

    Args:
        shares: The shares, each from 0 to 1.

    Raises:
        ConfigError: There are no shares, or one is not from 0 to 1.
    """

    def __init__(self, *shares: float) -> None:
        if not shares or not all(0 <= share <= 1 for share in shares):
            raise ConfigError(f"TunableLayer has the shares {shares}", "give numbers from 0 to 1, e.g. 0.5")
        self.shares = shares

    def __repr__(self) -> str:
        return f"TunableLayer({', '.join(map(repr, self.shares))})"

    def layers(self, tower_layers: int) -> list[int]:
        """The layers of a tower of that depth, each once, in the order of the shares."""
        return list(
            dict.fromkeys(min(math.floor(share * tower_layers + 0.5), tower_layers - 1) for share in self.shares)
        )


def tunable_fields(component: Component, tower_layers: int | None) -> dict[str, tuple[Any, ...]]:
    """The tunable fields of a component and of the components in its fields, with their values.

    Args:
        component: The component.
        tower_layers: Layers of the model's vision tower. None if no tower is known: :class:`TunableLayer` fields then
            have their own value only.

    Returns:
        The values by the path of the field below the component, e.g. ``scorer.source`` or ``pruners.0.layer``. The
        component's own value is the first one, unless it is a layer that the tower does not have. A field that is
        tunable itself is not looked into.

    Raises:
        ConfigError: An annotation holds a value that its field refuses, or annotates only a part of a field's type.
    """
    found: dict[str, tuple[Any, ...]] = {}
    for name, field in type(component).model_fields.items():
        own = getattr(component, name)
        mark = _mark(component, name, field)
        if mark is None:
            for key, inner in _inner(name, own):
                found.update({f"{key}.{path}": item for path, item in tunable_fields(inner, tower_layers).items()})
        elif isinstance(mark, Tunable):
            found[name] = _once((own, *(_accepted(component, name, value, mark) for value in mark.values)))
        elif tower_layers is None:
            found[name] = (own,)
        else:
            layers = [_accepted(component, name, layer, mark) for layer in mark.layers(tower_layers)]
            found[name] = _tower_values(own, layers, tower_layers)
    return found


def get_field(component: Component, path: str) -> Any:
    """The value of a field.

    Args:
        component: The component.
        path: Path of the field, e.g. ``scorer.source`` or ``pruners.0.layer``.

    Raises:
        ConfigError: There is no such field.
    """
    name, _, rest = path.partition(".")
    _check_field(component, name, path)
    value = getattr(component, name)
    if not rest:
        return value
    if isinstance(value, Component):
        return get_field(value, rest)
    number, _, rest = rest.partition(".")
    return get_field(_part(component, name, number, rest), rest)


def replace_field(component: C, path: str, value: Any) -> C:
    """The component with another value of one field.

    Args:
        component: The component; it is not changed.
        path: Path of the field, e.g. ``scorer.source`` or ``pruners.0.layer``. The field need not be tunable.
        value: The new value.

    Raises:
        ConfigError: There is no such field, or a component refuses the value.
    """
    return _replace(component, {path: value})


def variants(component: C, paths: Sequence[str] | None = None, tower_layers: int | None = None) -> list[C]:
    """All combinations of the values of tunable fields.

    Combinations that a component refuses, by a rule between its fields, are left out.

    Args:
        component: The component.
        paths: The tunable fields to vary; None for all.
        tower_layers: See :func:`tunable_fields`.

    Returns:
        The components, each once. The first one has the component's own values, except for layers that the tower does
        not have.

    Raises:
        ConfigError: A path names no tunable field, or an annotation holds a value that its field refuses.
    """
    fields = tunable_fields(component, tower_layers)
    chosen = list(fields) if paths is None else list(dict.fromkeys(paths))
    unknown = next((path for path in chosen if path not in fields), None)
    if unknown is not None:
        raise ConfigError(
            f"{type(component).__name__} has no tunable field {unknown!r}",
            f"use {', '.join(fields)}" if fields else "it has none; annotate the field with Tunable(...)",
        )
    made: list[C] = []
    for values in itertools.product(*(fields[path] for path in chosen)):
        try:
            variant = _replace(component, dict(zip(chosen, values, strict=True)))
        except ConfigError:
            continue
        if variant not in made:
            made.append(variant)
    return made


def _mark(component: Component, name: str, field: FieldInfo) -> Tunable | TunableLayer | None:
    """The annotation of a field.

    Raises:
        ConfigError: It has two annotations, or only a part of its type has one, which would do nothing.
    """
    marks = [item for item in field.metadata if isinstance(item, Tunable | TunableLayer)]
    inside = any(isinstance(item, Tunable | TunableLayer) for item in _inner_metadata(field.annotation))
    if inside or len(marks) > 1:
        problem = "a part of its type is annotated" if inside else "it is annotated twice"
        raise ConfigError(
            f"what may be tuned of {type(component).__name__}.{name} is not clear: {problem}",
            "annotate the whole field once, e.g. Annotated[float | None, Tunable(None, 0.5)]",
        )
    return marks[0] if marks else None


def _inner_metadata(annotation: Any) -> Iterator[Any]:
    """The metadata of all parts of a type."""
    for part in get_args(annotation):
        yield from getattr(part, "__metadata__", ())
        yield from _inner_metadata(part)


def _inner(name: str, value: Any) -> Iterator[tuple[str, Component]]:
    """The components in a field's value, with their paths."""
    if isinstance(value, Component):
        yield name, value
    elif isinstance(value, tuple):
        yield from ((f"{name}.{number}", item) for number, item in enumerate(value) if isinstance(item, Component))


def _once(values: Sequence[Any]) -> tuple[Any, ...]:
    """The values, each once. True and 1 are two values, as are 1 and 1.0."""
    kept: list[Any] = []
    for value in values:
        if not any(type(value) is type(other) and value == other for other in kept):
            kept.append(value)
    return tuple(kept)


def _tower_values(own: Any, layers: Sequence[int], tower_layers: int) -> tuple[Any, ...]:
    """The own layer, unless the tower lacks it, and the layers that are other ones. Layer -1 is the last one."""
    if not isinstance(own, int):  # None: the component reads no layer
        return (own, *layers)
    if not -tower_layers <= own < tower_layers:
        return tuple(layers)
    return (own, *(layer for layer in layers if layer != own % tower_layers))


def _accepted(component: Component, name: str, value: Any, mark: Tunable | TunableLayer) -> Any:
    """A value as the field stores it. A rule between fields may still refuse it in this component.

    Raises:
        ConfigError: The field itself refuses it.
    """
    cls = type(component)
    try:
        return getattr(cls.model_validate({**_fields(component), name: value}), name)
    except ValidationError as error:
        wrong = next((item for item in error.errors() if item["loc"][:1] == (name,)), None)
        if wrong is None:
            return value
        raise ConfigError(
            f"{cls.__name__}.{name} is annotated with {shorten(mark)}, but refuses {value!r}"
            f" ({wrong['msg'].removeprefix('Value error, ')})",
            "name only values that the field allows",
        ) from error


def _fields(component: Component) -> dict[str, Any]:
    return {name: getattr(component, name) for name in type(component).model_fields}


def _check_field(component: Component, name: str, path: str) -> None:
    """Refuse a path whose first part is no field."""
    known = type(component).model_fields
    if name not in known:
        raise ConfigError(
            f"{type(component).__name__} has no field {name!r} (path {path!r})",
            f"use {', '.join(known)}" if known else "it has no fields",
        )


def _part(component: Component, name: str, number: str, rest: str) -> Component:
    """The component at one place of a field's tuple, of which the path names a field, too."""
    parts = dict(_inner(name, getattr(component, name)))
    part = parts.get(f"{name}.{number}")
    if part is None or not rest:
        raise ConfigError(
            f"{type(component).__name__}.{name} holds no component with a field at {name}.{number}",
            f"use {', '.join(f'{key}.FIELD' for key in parts)}" if parts else f"name the field {name!r} itself",
        )
    return part


def _replace(component: C, changes: Mapping[str, Any]) -> C:
    """The component with all changes made at once, so that only the result has to be valid."""
    fields = _fields(component)
    below: dict[str, dict[str, Any]] = {}
    for path, value in changes.items():
        name, _, rest = path.partition(".")
        _check_field(component, name, path)
        if rest:
            below.setdefault(name, {})[rest] = value
        else:
            fields[name] = value
    for name, inner in below.items():
        fields[name] = _replace_below(component, name, inner)
    return type(component)(**fields)


def _replace_below(component: Component, name: str, changes: Mapping[str, Any]) -> Any:
    """A field's value with changes in the component, or in the components of a tuple, that it holds."""
    value = getattr(component, name)
    if isinstance(value, Component):
        return _replace(value, changes)
    by_number: dict[str, dict[str, Any]] = {}
    for path, item in changes.items():
        number, _, rest = path.partition(".")
        _part(component, name, number, rest)
        by_number.setdefault(number, {})[rest] = item
    return tuple(
        _replace(item, by_number[str(number)]) if str(number) in by_number else item
        for number, item in enumerate(value)
    )
