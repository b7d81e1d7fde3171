"""Which candidates a tune has: those that the user names, or all that the model can serve; random always."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tokenprune.adapters.base import Adapter
from tokenprune.budgets.base import Budget
from tokenprune.config import Method
from tokenprune.engine import choose_layers, chosen
from tokenprune.errors import ConfigError, TokenPruneError
from tokenprune.named import list_methods, load_method
from tokenprune.pruners.base import Pruner
from tokenprune.pruners.topk import TopK
from tokenprune.scorers.random import Random
from tokenprune.selectors.fixed import Fixed
from tokenprune.tuning.candidate import Candidate
from tokenprune.tuning.config import CandidateEntry
from tokenprune.tuning.ranking import is_random

#: What a user may name as a candidate.
Named = str | Method | Candidate | CandidateEntry


@dataclass
class Pool:
    """The candidates of one budget.

    Attributes:
        candidates: Those that may run, each name once.
        refused: Those that cannot, and why.
    """

    candidates: list[Candidate] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)


class Gathering:
    """Makes candidates for a model.

    Args:
        adapter: The model's adapter.
        batches: The samples, for methods whose layers depend on them.
        seed: Seed of random candidates.
    """

    def __init__(self, adapter: Adapter, batches: Sequence[Mapping[str, Any]], seed: int = 0) -> None:
        self.adapter, self.batches, self.seed = adapter, batches, seed

    def pool(self, budget: Budget, named: Iterable[Named] | None, compositions: bool = True) -> Pool:
        """The candidates of a budget.

        Args:
            budget: What each may cost.
            named: What the user named; None for all named methods.
            compositions: With all named methods, also combinations of scorers and pruners that are none of them.

        Raises:
            ConfigError: Two candidates have the same name, or something named is no candidate.
            UnknownNameError: No method has a name.
        """
        pool = Pool()
        everything = [method.name for method in list_methods() if method.problem is None]
        for item in everything if named is None else named:
            name, method, origin = self._method(item)
            if name in pool.refused or name in [candidate.name for candidate in pool.candidates]:
                raise ConfigError(f"two candidates are called {name!r}", "give one of them another label")
            try:
                pool.candidates.append(Candidate(name, self._fixed(method, budget, name), origin))
            except TokenPruneError as error:
                pool.refused[name] = str(error)
        self._add_random(pool, budget)
        return pool

    def _method(self, item: Named) -> tuple[str, Method, str]:
        match item:
            case Candidate():
                return item.name, item.method, item.origin
            case Method():
                return item.label or "method", item, item.label or "method"
            case CandidateEntry():
                return _entry(item)
            case str():
                method = load_method(item)
                return method.label or item, method, item
        raise ConfigError(
            f"a candidate is {type(item).__name__}", "give names of methods, tp.Method objects, or candidates"
        )

    def _fixed(self, method: Method, budget: Budget, name: str) -> Method:
        """The method with fixed layers and the budget, and with the tune's seed if it is a random one."""
        method = method.model_copy(update={"budget": budget, "label": name})
        if not isinstance(method.layers, Fixed):
            choice = choose_layers(self.adapter.model, method, self.batches)
            method = chosen(method, choice).model_copy(update={"layers": Fixed(layers=choice.layers)})
        if is_random(method.pruner):
            method = method.model_copy(update={"pruner": self._random()})
        return method

    def _add_random(self, pool: Pool, budget: Budget) -> None:
        """Random tokens before the layers of every candidate, so that each has its equal in cost."""
        there = {_layers(candidate) for candidate in pool.candidates if is_random(candidate.method.pruner)}
        for candidate in list(pool.candidates):
            layers = _layers(candidate)
            if layers in there:
                continue
            there.add(layers)
            name = f"random before {', '.join(map(str, layers))}"
            method = Method(layers=Fixed(layers=layers), pruner=self._random(), budget=budget, label=name)
            pool.candidates.append(Candidate(name, method, "random"))

    def _random(self) -> Pruner:
        return TopK(scorer=Random(seed=self.seed))


def _layers(candidate: Candidate) -> tuple[int, ...]:
    assert isinstance(candidate.method.layers, Fixed)
    return candidate.method.layers.layers


def _entry(entry: CandidateEntry) -> tuple[str, Method, str]:
    named = load_method(entry.name) if entry.name is not None else None
    fields = {
        name: getattr(entry, name) if getattr(entry, name) is not None else getattr(named, name, None)
        for name in ("layers", "pruner", "positions")
    }
    name = entry.label or (named.label if named is not None else None) or "method"
    budget = {"name": "layer_average", "ratio": 1.0} if named is None else named.budget
    fields = {key: value for key, value in fields.items() if value is not None}
    return name, Method(**fields, budget=budget, label=name), entry.name or name
