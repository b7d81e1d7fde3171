"""Named methods: YAML files that distributions ship, found through the entry-point group ``tokenprune.methods``.

An entry point of that group names a package; every ``*.yaml`` in it is a method::

    description: what it does, in one sentence
    paper: title (arXiv id)
    differs: what differs from the paper
    method: {layers: {...}, pruner: {...}, budget: {...}}
    published: [{model: ..., family: ..., method: {layers: {...}}, source: ...}]

``published`` holds settings for single models (:class:`tokenprune.methods.published.Published`). Only ``method`` is
required.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Self

from pydantic import model_validator

from tokenprune.budgets.stated import stated_budget
from tokenprune.config import Config, Method
from tokenprune.core.document import Document, parse_yaml, read_yaml
from tokenprune.core.registry import suggest
from tokenprune.errors import ConfigError, PluginError, UnknownNameError
from tokenprune.methods.files import shipped_files
from tokenprune.methods.published import Published, choose
from tokenprune.tables.column import Column, fill, text
from tokenprune.tables.html import parts_html


class Shipped(Config):
    """The content of a named method's file. The method itself is checked when it is used.

    Attributes:
        description: What it does, in one sentence.
        paper: Title of the paper (arXiv id).
        differs: What differs from the paper.
        method: Fields of a :class:`tokenprune.Method`.
        published: Settings for single models.
    """

    description: str = ""
    paper: str = ""
    differs: str = ""
    method: dict[str, Any]
    published: tuple[Published, ...] = ()

    @model_validator(mode="after")
    def _each_model_once(self) -> Self:
        names = [entry.model.lower() for entry in self.published]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"published names the model {repeated[0]!r} twice: give each entry its own name")
        return self


@dataclass(frozen=True)
class NamedMethod:
    """A named method as it is shipped.

    Attributes:
        name: The file's name without its suffix.
        distribution: The distribution that ships it.
        data: The content of the file; empty if it cannot be read.
        problem: Why the method cannot be used; None if it can.
        published: Settings that were published for single models.
        file: Where the method stands, if no distribution ships it.
    """

    name: str
    distribution: str
    data: dict[str, Any]
    problem: str | None = None
    published: tuple[Published, ...] = ()
    file: Document | None = None

    @property
    def description(self) -> str:
        """The method in one sentence."""
        return str(self.data.get("description", ""))

    @property
    def title(self) -> str:
        """The method's name in tables: its label, or its own name."""
        return str(self.data["method"].get("label") or self.name)

    @property
    def paper(self) -> str:
        """The paper that describes the method."""
        return str(self.data.get("paper", ""))

    def settings_for(self, model: Any) -> Published:
        """The settings that were published for a model; arguments and errors as for :func:`load_method`."""
        return choose(self.published, model, self.file.name if self.file else self.name)

    def method(self, budget: str | None = None, *, model: Any = None, **fields: Any) -> Method:
        """The method; arguments and errors as for :func:`load_method`."""
        where = self.file.name if self.file else f"method {self.name!r}"
        own = {"label": self.name, **self.data["method"]}
        data = own if model is None else self.settings_for(model).over(own)
        stated = stated_budget(budget, fields, where)
        if stated is not None:
            data = {**data, "budget": stated}
        if self.file is None:
            return Method.from_dict(data, where)
        changed = {name: value for name, value in data.items() if value is not self.data["method"].get(name)}
        return Method.from_document(self.file.over(changed))


class MethodList(list[NamedMethod]):
    """A list of named methods that a notebook shows as a table."""

    def _repr_html_(self) -> str:
        columns: tuple[Column[NamedMethod], ...] = (
            text("name", lambda method: method.name),
            text("distribution", lambda method: method.distribution),
            text("description", lambda method: f"BROKEN: {method.problem}" if method.problem else method.description),
        )
        return parts_html(fill("Named methods", columns, self))


def list_methods() -> list[NamedMethod]:
    """All installed named methods. A broken one states its :attr:`~NamedMethod.problem`. A notebook shows a table."""
    return MethodList(sorted(_discover(), key=lambda method: (method.name, method.distribution)))


def method_names() -> list[str]:
    """The names of all installed named methods. No method's file is read."""
    return sorted({method.name for method in _discover("")})


def load_method(name: str | Path, budget: str | None = None, *, model: Any = None, **fields: Any) -> Method:
    """A named method, or the method in a YAML file.

    It optionally has another budget, or the settings that were published for a model. A file holds the fields of a
    :class:`~tokenprune.Method`, or the form in which named methods are shipped, with ``method`` and the keys next to
    it; ``tokenprune tune`` writes such files. A method without a label is labelled with the name of its file.

    A number alone does not say what it counts, so the keyword says it:

    - ``average_tokens=128``, ``average_ratio=0.25``: visual tokens averaged over all decoder layers, as the pruning
      papers count them; the layers before the pruning see all tokens, so fewer are kept than the number says;
    - ``keep_tokens=128``, ``keep_ratio=0.25``: visual tokens kept after the last stage;
    - ``flops_reduction=60``: reduction of the prefill's FLOPs in percent.

    Args:
        name: The name, e.g. ``"entropyprune"``, or the path of a file, which as a text ends with ``.yaml`` or ``.yml``.
        budget: Name of another budget, whose fields follow: ``"keep_schedule", ratios=[0.5, 0.2]``. By default it is
            that of the method's file.
        model: A transformers model, its config, or the name of a model in the method's file: the method has the
            settings, and without ``budget`` and ``fields`` the first budget, that its authors published for this
            model. ``tokenprune show NAME`` lists them. None: the method's own settings, which are the same for every
            model.
        fields: One of the keywords above; with ``budget``, the fields of that budget.

    Raises:
        UnknownNameError: No method of that name is installed.
        PluginError: Two distributions ship the method, or its file is broken.
        MissingDataError: The file does not exist or cannot be read.
        ConfigError: The file holds no method, the budget is unclear or wrong, or nothing was published for the model.
    """
    return find_shipped(name).method(budget, model=model, **fields)


def shipped_method(name: str) -> NamedMethod:
    """A named method as it is shipped; argument and errors as for :func:`load_method`."""
    if not isinstance(name, str):
        raise ConfigError(f"a method's name is a text, got {type(name).__name__}", "see tp.list_methods()")
    installed = list(_discover(name))
    matches = [method for method in installed if method.name == name]
    if not matches:
        raise UnknownNameError(f"unknown method {name!r}", suggest(name, {method.name for method in installed}))
    if len(matches) > 1:
        owners = " and ".join(method.distribution for method in matches)
        raise PluginError(f"method {name!r} is shipped twice, by {owners}", "uninstall one of them")
    method = matches[0]
    if method.problem is not None:
        raise PluginError(
            f"method {name!r} of {method.distribution} cannot be read ({method.problem})",
            f"repair or uninstall {method.distribution}",
        )
    return method


def is_file_name(text: str) -> bool:
    """Whether a text names a method's file and not a named method: it ends with ``.yaml`` or ``.yml``."""
    return text.endswith((".yaml", ".yml"))


def find_shipped(name: str | Path) -> NamedMethod:
    """A named method, or the one in a YAML file, as it is shipped; argument and errors as for :func:`load_method`."""
    if isinstance(name, Path):
        name = str(name)
    elif not isinstance(name, str) or not is_file_name(name):
        return shipped_method(name)
    document = read_yaml(name)
    data = document.data
    if not isinstance(data, dict):
        raise ConfigError(
            f"{name} holds no method", "write layers, pruner and budget; `tokenprune show` prints examples"
        )
    if "task" in data or "methods" in data:
        raise ConfigError(f"{name} is an experiment, not a method", f"use `tokenprune run {name}`")
    if data.keys().isdisjoint(Shipped.model_fields):
        return NamedMethod(Path(name).stem, "", {"method": data}, file=document)
    published = Shipped.from_document(document).published
    return NamedMethod(Path(name).stem, "", data, published=published, file=document.part("method"))


def by_title(names: Sequence[str], taken: Collection[str], what: str) -> dict[str, NamedMethod]:
    """Named methods, and those in YAML files, by their titles.

    Args:
        names: Names and paths of files; errors as for :func:`load_method`.
        taken: Titles that something else has.
        what: The things that have the titles, for messages, e.g. ``"rows of the table"``.

    Raises:
        ConfigError: Two have the same title.
    """
    found: dict[str, NamedMethod] = {}
    for method in map(find_shipped, names):
        if method.title in found or method.title in taken:
            raise ConfigError(f"two {what} are named {method.title!r}", "give each method once, with its own label")
        found[method.title] = method
    return found


def _discover(wanted: str | None = None) -> Iterator[NamedMethod]:
    """The installed methods. If ``wanted`` is given, only files of that name are read; the others have no data."""
    for found in shipped_files():
        if found.file is None:
            yield NamedMethod(found.name, found.distribution, {}, found.problem)
        elif wanted in (None, found.name):
            yield _read(found.name, found.file, found.distribution)
        else:
            yield NamedMethod(found.name, found.distribution, {})


def _read(name: str, file: Traversable, distribution: str) -> NamedMethod:
    try:
        document = parse_yaml(file.read_text(encoding="utf-8"), file.name)
        published = Shipped.from_document(document).published
    except (OSError, ValueError) as error:  # a ConfigError is a ValueError
        return NamedMethod(name, distribution, {}, " ".join(str(error).split()))
    return NamedMethod(name, distribution, document.data, published=published)
