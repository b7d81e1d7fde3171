"""Which candidates a tune has: those that the user names, or all that the model can serve; random always."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tokenprune.adapters.base import Adapter
from tokenprune.budgets.base import Budget
from tokenprune.config import Method
from tokenprune.engine.trials.race import fixed_layers
from tokenprune.errors import ConfigError, TokenPruneError
from tokenprune.methods.named import load_method
from tokenprune.pruners.topk import TopK
from tokenprune.run.apply import choose_layers, chosen
from tokenprune.scorers.random import Random
from tokenprune.selectors.entropy_profile import EntropyProfile
from tokenprune.selectors.fixed import Fixed
from tokenprune.tuning.candidates import default_candidates
from tokenprune.tuning.config import CandidateEntry
from tokenprune.tuning.layers import layer_words
from tokenprune.tuning.ranking import is_random
from tokenprune.tuning.setting import Candidate

#: What a user may name as a candidate.
Named = str | Method | Candidate | CandidateEntry


@dataclass
class Gathered:
    """The candidates of one budget.

    Attributes:
        candidates: Those that may run, each name once.
        refused: Those that cannot, and why.
    """

    candidates: list[Candidate] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Gathering:
    """Makes the candidates for a model.

    Attributes:
        adapter: The model's adapter.
        batches: The samples, for methods whose layers depend on them.
        curves: Entropy curves of the model.
        visual: Visual tokens of the smallest and of the largest sample.
        text: Text tokens of the longest sample.
        seed: Seed of random candidates.
        open_cost: Whether the budget is not known yet: methods whose layers depend on it are refused.
    """

    adapter: Adapter
    batches: Sequence[Mapping[str, Any]]
    curves: EntropyProfile
    visual: tuple[int, ...]
    text: int
    seed: int = 0
    open_cost: bool = False

    def gather(self, budget: Budget, named: Iterable[object] | None, compositions: bool = True) -> Gathered:
        """The candidates of a budget.

        Args:
            budget: What each may cost.
            named: What the user named; None for all named methods.
            compositions: With all named methods, also combinations of scorers and pruners that are none of them.

        Raises:
            ConfigError: Two candidates have the same name, or something named is no candidate.
            UnknownNameError: No method has a name.
        """
        if named is None:
            return Gathered(*self._default(budget, None, compositions))
        single: list[Method | Candidate | CandidateEntry] = []
        names: list[str] = []
        for item in named:
            if isinstance(item, str):
                names.append(item)
            elif isinstance(item, CandidateEntry) and item.alone and item.name is not None:
                names.append(item.name)
            elif isinstance(item, Method | Candidate | CandidateEntry):
                single.append(item)
            else:
                what = f"a candidate is {type(item).__name__}"
                raise ConfigError(what, "give names of methods, tp.Method objects, or candidates")
        if not names and not single:
            raise ConfigError("there are no candidates", "name some, or leave them out for all named methods")
        found = Gathered(*self._default(budget, names, False))
        for item in single:
            self._add(found, item, budget)
        self._add_random(found, budget)
        return found

    def _default(
        self, budget: Budget, names: list[str] | None, compositions: bool
    ) -> tuple[list[Candidate], dict[str, str]]:
        candidates, refused = default_candidates(
            self.adapter,
            budget,
            methods=names,
            curves=self.curves,
            visual=self.visual,
            text=self.text,
            compositions=compositions,
        )
        return [self._seeded(candidate) for candidate in candidates], refused

    def _add(self, found: Gathered, item: Method | Candidate | CandidateEntry, budget: Budget) -> None:
        """Add a single method, with fixed layers and the budget."""
        name, method = _single(item)
        if name in found.refused or any(name == candidate.name for candidate in found.candidates):
            raise ConfigError(f"two candidates are called {name!r}", "give one of them another label")
        method = method.model_copy(update={"budget": budget, "label": name})
        try:
            if self.open_cost and method.layers.runs_the_method:
                raise ConfigError(
                    "its selector tries the method out at a budget, and this one is found by measuring the time",
                    "give it fixed layers, or name the method alone: its variants are then candidates",
                )
            if not isinstance(method.layers, Fixed):
                choice = choose_layers(self.adapter.model, method, self.batches)
                method = chosen(method, choice).model_copy(update={"layers": Fixed(layers=choice.layers)})
        except TokenPruneError as error:
            found.refused[name] = str(error)
        else:
            found.candidates.append(Candidate(name, method, "random" if is_random(method.pruner) else "named"))

    def _add_random(self, found: Gathered, budget: Budget) -> None:
        """Random tokens before the layers of every candidate, so that each has its equal in cost."""
        there = {fixed_layers(candidate.method) for candidate in found.candidates if is_random(candidate.method.pruner)}
        for candidate in list(found.candidates):
            layers = fixed_layers(candidate.method)
            if layers not in there:
                there.add(layers)
                name = f"random: {layer_words(layers)}"
                if any(name == other.name for other in found.candidates):
                    raise ConfigError(f"a candidate that is not random is called {name!r}", "give it another label")
                pruner = TopK(scorer=Random(seed=self.seed))
                method = Method(layers=Fixed(layers=layers), pruner=pruner, budget=budget, label=name)
                found.candidates.append(Candidate(name, method, "random"))

    def _seeded(self, candidate: Candidate) -> Candidate:
        """A random candidate with the tune's seed; others as they are, and so are methods that the user made."""
        if not is_random(candidate.method.pruner):
            return candidate
        pruner = TopK(scorer=Random(seed=self.seed))
        return replace(candidate, method=candidate.method.model_copy(update={"pruner": pruner}))


def listed(named: object) -> Iterable[Any]:
    """What the user named, if it is a list: the characters of a text and the fields of a method are no candidates.

    Raises:
        ConfigError: It is none.
    """
    if not isinstance(named, Iterable) or isinstance(named, str | Mapping | Method | CandidateEntry):
        what = f"the candidates are {type(named).__name__}"
        raise ConfigError(what, "give a list of names of methods, tp.Method objects, or candidates")
    return named


def _single(item: Method | Candidate | CandidateEntry) -> tuple[str, Method]:
    """The name and the method of what a user named."""
    if isinstance(item, Candidate):
        return item.name, item.method
    if isinstance(item, Method):
        if item.label is None:
            raise ConfigError("a candidate has no label, so tables could not name it", "give the Method a label")
        return item.label, item
    fields = {
        name: getattr(item, name)
        for name in ("layers", "pruner", "positions", "label")
        if getattr(item, name) is not None
    }
    if item.name is None:
        budget = {"name": "layer_average", "ratio": 1.0}  # the tune's takes its place
        return str(item.label), Method(budget=budget, **fields)
    method = load_method(item.name).model_copy(update=fields)
    return method.label or item.name, method
