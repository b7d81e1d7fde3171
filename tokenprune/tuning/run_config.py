"""The parts that configurations of experiments and of tunes share: what runs, and the methods that take part."""

from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

from pydantic import AfterValidator, Field, GetJsonSchemaHandler, field_validator, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from tokenprune.budgets.base import Budget
from tokenprune.config import Config, Label, Method, Positions
from tokenprune.core import plugins
from tokenprune.core.component import Component, FromRegistry
from tokenprune.core.registry import suggest
from tokenprune.methods.named import is_file_name, load_method, method_names
from tokenprune.methods.published import Published
from tokenprune.models.base import ModelSpec
from tokenprune.pruners.base import Pruner
from tokenprune.selectors.base import LayerSelector
from tokenprune.tasks.base import Task


class MayDiffer:
    """Annotation of a setting that may change between two runs into one folder: stored answers stay comparable."""


def _is_a_path(output: str) -> str:
    if not output.strip():
        raise ValueError("name a folder for the results")
    return output


#: The folder of a run's results.
OutputPath = Annotated[str, AfterValidator(_is_a_path), MayDiffer()]


class RunConfig(Config):
    """Base of what a command runs, as a file says it.

    Attributes:
        requires: Distributions that its components come from, each with how to install it. Checked first, so that a run
            says what is missing instead of which names are unknown.
        model: The model.
        task: The task.
    """

    requires: Annotated[dict[str, str], MayDiffer()] = Field(default_factory=dict)
    model: Annotated[ModelSpec, FromRegistry("models")]
    task: Annotated[Task, FromRegistry("tasks")]

    @field_validator("requires")
    @classmethod
    def _installed(cls, requires: dict[str, str]) -> dict[str, str]:
        """Runs before the other fields are read: pydantic validates fields in order."""
        for name, how in requires.items():
            plugins.require(name, how)
        return requires

    @classmethod
    def free(cls) -> frozenset[str]:
        """Names of the settings that may differ between two runs into one folder."""
        fields = cls.model_fields.items()
        return frozenset(name for name, field in fields if MayDiffer in map(type, field.metadata))

    def settings(self) -> dict[str, Any]:
        """All settings that are not null, JSON-ready."""
        return self.model_dump(mode="json", exclude_none=True)


def as_entries(methods: Any) -> Any:
    """A list of methods in which a name stands for an entry with that name."""
    if not isinstance(methods, list | tuple):
        return methods
    return [{"name": item} if isinstance(item, str) else item for item in methods]


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


class CandidateEntry(Component):
    """One entry of ``methods``: a named method, or one defined by ``layers`` and ``pruner``.

    In a tune a name alone stands for the method and for the variants of it that its components declare.

    Attributes:
        name: Name of a named method, or the path of a YAML file with a method, e.g. one that ``tokenprune tune`` wrote.
        layers: Layer selector; replaces the named method's.
        pruner: Pruner; replaces the named method's.
        positions: ``original`` or ``renumbered``, see :class:`tokenprune.Method`; replaces the named method's.
        cut_earlier_caches: See :class:`tokenprune.Method`; replaces the named method's.
        label: Name in tables; by default the method's name, or that of its file.
    """

    more_names: ClassVar[tuple[str, ...]] = ()

    name: Annotated[str, MethodName()] | None = None
    layers: Annotated[LayerSelector, FromRegistry("selectors")] | None = None
    pruner: Annotated[Pruner, FromRegistry("pruners")] | None = None
    positions: Positions | None = None
    cut_earlier_caches: bool | None = None
    label: Label | None = None

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.name is None and (self.layers is None or self.pruner is None or self.label is None):
            raise ValueError("a method needs a name, or layers, pruner and label")
        if self.name is not None:
            check_name(self.name, self.more_names)
        return self

    @property
    def alone(self) -> bool:
        """Whether the entry is a name and nothing else."""
        others = (self.layers, self.pruner, self.positions, self.cut_earlier_caches, self.label)
        return self.name is not None and all(value is None for value in others)

    @property
    def title(self) -> str:
        """The name of the method in tables."""
        if self.label is None and self.name is not None and is_file_name(self.name):
            return Path(self.name).stem
        return self.label or self.name or "method"

    def method(self, budget: Budget, settings: Published | None = None) -> Method:
        """The method with the given budget, and with published settings if they are given."""
        model = settings.model if settings is not None else None
        named = load_method(self.name, model=model) if self.name is not None else None
        layers = self.layers or (named.layers if named else None)
        pruner = self.pruner or (named.pruner if named else None)
        cut = self.cut_earlier_caches
        assert layers is not None
        assert pruner is not None
        return Method(
            layers=layers,
            pruner=pruner,
            budget=budget,
            positions=self.positions or (named.positions if named else "original"),
            cut_earlier_caches=cut if cut is not None else named is not None and named.cut_earlier_caches,
            label=self.title,
            tuned_for=named.tuned_for if named else None,
        )
