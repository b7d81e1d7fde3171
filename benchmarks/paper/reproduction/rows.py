"""The rows of a table: a method at a budget, with the layers and tokens that follow from both."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from tokenprune import Method
from tokenprune.budgets.base import Budget, Schedule
from tokenprune.budgets.label import budget_label, in_words
from tokenprune.budgets.stated import STATED
from tokenprune.core.architecture import Architecture as Sizes
from tokenprune.core.component import FromRegistry
from tokenprune.errors import BudgetError, ConfigError, LayerError, TokenPruneError
from tokenprune.flops.decoder import prefill_cost
from tokenprune.methods.named import NamedMethod, find_shipped, is_file_name
from tokenprune.methods.published import Published
from tokenprune.models.downsample import check_budget
from tokenprune.run.apply import check_method
from tokenprune.selectors.base import SelectorContext

from .architecture import Architecture
from .plan import HERE, ROOT, Entry, Table

UNPRUNED, DOWNSAMPLED = "unpruned", "downsampled"
#: Families whose pictures tokenprune can make smaller.
SMALLER = ("llava", "qwen2_5_vl")
#: Why a row is in the table: the unpruned model, equal layer averages, a budget of its own, its authors' budget.
Kind = Literal["unpruned", "equal", "also", "published"]


@dataclass(frozen=True)
class Row:
    """One row of a table.

    Attributes:
        method: The method's name in tables.
        kind: Why it is there.
        budget: The budget as names of folders have it.
        words: The budget in words.
        arguments: The arguments of lmms-eval's model that state the row.
        definition: The method's fields, JSON-ready; None where nothing is pruned.
        pruned: The method; None where nothing is pruned.
        layers: Tokens are dropped before each of these.
        kept: Visual tokens after each of these.
        per_layer: Visual tokens that each decoder layer sees.
        whole: Visual tokens before pruning.
        calibrated: Whether the layers are found on calibration samples. Those above are then the ones without any, or 0
            where these cannot meet the budget.
        source: Where the settings were published; empty for the method's own.
    """

    method: str
    kind: Kind
    budget: str
    words: str
    arguments: tuple[tuple[str, str], ...]
    definition: dict[str, Any] | None
    pruned: Method | None
    layers: tuple[int, ...]
    kept: tuple[int, ...]
    per_layer: tuple[int, ...]
    whole: int
    calibrated: bool = False
    source: str = ""

    @property
    def name(self) -> str:
        """E.g. ``fastv/average-tokens-128``."""
        return f"{self.method}/{self.budget}"

    @property
    def average(self) -> float:
        """Visual tokens, averaged over the decoder layers."""
        return sum(self.per_layer) / len(self.per_layer)


@dataclass(frozen=True)
class Cannot:
    """A row that cannot be: its name, and why."""

    name: str
    why: str


def rows_of(table: Table, model: Architecture) -> Iterator[Row | Cannot]:
    """All rows of a table, and those that its model or their budget rule out."""
    layers = int(model.config.get_text_config(decoder=True).num_hidden_layers)
    whole = (table.visual_tokens,) * layers
    yield Row(UNPRUNED, "unpruned", "all", "all tokens", (("method", UNPRUNED),), None, None, (), (), whole, whole[0])
    for budget in table.budgets:
        for entry in table.methods:
            yield from _rows(entry, budget, "equal", table, model)
    for further in table.also:
        yield from _rows(further.method, further.budget, "also", table, model)
    for name in table.published:
        yield from _published(name, table, model)


def _rows(
    entry: Entry, budget: Mapping[str, int | float], kind: Kind, table: Table, model: Architecture
) -> Iterator[Row | Cannot]:
    """A method at one budget, once per seed."""
    ((keyword, number),) = budget.items()
    label = f"{keyword.replace('_', '-')}-{number:g}"
    stated: dict[str, Any] = {keyword: number}
    arguments: tuple[tuple[str, str], ...] = (("method", entry.name), (keyword, f"{number:g}"))
    if entry.name == DOWNSAMPLED:
        yield _downsampled(STATED[keyword].of(number), label, arguments, kind, table, model)
        return
    shipped = _find(entry.name)
    settings = _settings(shipped, model) if entry.settings == "published" else None
    fitting = settings.model if settings else None
    if is_file_name(entry.name):
        arguments = (("method", str((HERE / entry.name).relative_to(ROOT))), arguments[1])
    if settings is not None:
        arguments = (*arguments, ("published", "true"))
    for seed in entry.seeds or (None,):
        own = label if seed is None else f"{label}-seed-{seed}"
        try:
            method = shipped.method(model=fitting, **stated)
            if seed is not None:
                method = _seeded(method, seed)
            yield _row(
                shipped.title,
                kind,
                own,
                arguments if seed is None else (*arguments, ("seed", str(seed))),
                method,
                table,
                model,
                calibrated=entry.calibrated,
                source=settings.source if settings else "",
            )
        except TokenPruneError as error:
            yield Cannot(f"{shipped.title}/{own}", str(error))


def _published(name: str, table: Table, model: Architecture) -> Iterator[Row | Cannot]:
    """A method at each budget that its authors published for the model."""
    shipped = _find(name)
    found = shipped.settings_for(model.config)  # an error here is a mistake of the table
    for budget in found.budgets or (None,):
        fields = dict(budget or {})
        given = [("method", name), ("published", "true")]
        if budget is not None:
            given.append(("budget", json.dumps(budget)))
        method = shipped.method(fields.pop("name", None), model=found.model, **fields)
        label = "published-" + re.sub(r"[^\w.]+", "-", budget_label(method.budget)).strip("-")
        try:
            yield _row(shipped.title, "published", label, tuple(given), method, table, model, source=found.source)
        except TokenPruneError as error:
            yield Cannot(f"{shipped.title}/{label}", str(error))


def _find(name: str) -> NamedMethod:
    return find_shipped(HERE / name if is_file_name(name) else name)


def _settings(shipped: NamedMethod, model: Architecture) -> Published | None:
    """The settings that a method's authors published for a model; None where there are none."""
    sizes = Sizes.of(model.config)
    return next((item for item in shipped.published if item.fits(sizes)), None)


def _seeded(method: Method, seed: int) -> Method:
    """The method with another seed of its scorer, as the plugin sets it."""
    scorer: Any = getattr(method.pruner, "scorer", None)
    if not hasattr(scorer, "seed"):
        raise ConfigError(f"method {method.label!r} has no scorer with a seed", "leave out 'seeds'")
    pruner = method.pruner.model_copy(update={"scorer": scorer.model_copy(update={"seed": seed})})
    return method.model_copy(update={"pruner": pruner})


def _downsampled(
    budget: dict[str, Any],
    label: str,
    arguments: tuple[tuple[str, str], ...],
    kind: Kind,
    table: Table,
    model: Architecture,
) -> Row | Cannot:
    """Smaller pictures: all layers see the tokens that are left."""
    family = model.config.model_type
    if family not in SMALLER:
        return Cannot(f"{DOWNSAMPLED}/{label}", f"tokenprune does not make pictures of {family!r} smaller")
    made: Budget = FromRegistry("budgets").build(budget)
    check_budget(made)
    layers = int(model.config.get_text_config(decoder=True).num_hidden_layers)
    kept = made.keep(table.visual_tokens, Schedule((0,), layers, prefill_cost(model.config, 0)))
    definition = {DOWNSAMPLED: made.model_dump(mode="json", exclude_none=True)}
    words = in_words(budget_label(made))
    return Row(
        DOWNSAMPLED, kind, label, words, arguments, definition, None, (0,), kept, kept * layers, table.visual_tokens
    )


def _row(
    title: str,
    kind: Kind,
    label: str,
    arguments: tuple[tuple[str, str], ...],
    method: Method,
    table: Table,
    model: Architecture,
    *,
    calibrated: bool = False,
    source: str = "",
) -> Row:
    """A row of a method with its budget.

    Raises:
        TokenPruneError: The method does not fit the model, or cannot meet its budget.
    """
    sizes = Sizes.of(model.config)
    check_method(model.model, method)
    depth = int(model.config.get_text_config(decoder=True).num_hidden_layers)
    choice = method.layers.select(SelectorContext(model.config.model_type, depth, architecture=sizes))
    if choice.layers[-1] >= depth:
        raise LayerError(f"layer {choice.layers[-1]} of a model with {depth} layers", f"use 0 to {depth - 1}")
    layers, cost = choice.layers, prefill_cost(model.config, 0)
    try:
        kept = method.budget.keep(table.visual_tokens, Schedule(layers, depth, cost))
    except BudgetError:
        if not calibrated:  # what calibration samples find may be earlier
            raise
        layers = (0,)
        kept = method.budget.keep(table.visual_tokens, Schedule(layers, depth, cost))
    schedule = Schedule(layers, depth, cost)
    per_layer = tuple(schedule.per_layer(table.visual_tokens, kept))
    definition = method.model_dump(mode="json", exclude={"label"})
    words = in_words(budget_label(method.budget))
    whole = table.visual_tokens
    return Row(
        title, kind, label, words, arguments, definition, method, layers, kept, per_layer, whole, calibrated, source
    )
