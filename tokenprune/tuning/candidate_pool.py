"""The candidates of a tune: those that the user names, or all that the model can serve; random always."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tokenprune.adapters.base import Adapter
from tokenprune.budgets.base import Budget
from tokenprune.config import Method
from tokenprune.engine.trials.race import fixed_layers
from tokenprune.errors import ConfigError, TokenPruneError
from tokenprune.pruners.topk import TopK
from tokenprune.run.apply import choose_layers
from tokenprune.run.methods import chosen
from tokenprune.scorers.random import Random
from tokenprune.selectors.entropy_profile import EntropyProfile
from tokenprune.selectors.fixed import Fixed
from tokenprune.tuning.candidate_maker import Candidate
from tokenprune.tuning.candidates import default_candidates
from tokenprune.tuning.layers import layer_words
from tokenprune.tuning.ranking import keeps_at_random
from tokenprune.tuning.run_config import CandidateEntry

#: What a user may name as a candidate.
CandidateSpec = str | Method | Candidate | CandidateEntry


@dataclass
class CandidatePool:
    """The candidates of one budget.

    Attributes:
        candidates: Those that may run, each name once.
        refused: Those that cannot, and why.
    """

    candidates: list[Candidate] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class PoolBuilder:
    """Builds the candidates for a model.

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

    def build(self, budget: Budget, specs: Iterable[object] | None, compositions: bool = True) -> CandidatePool:
        """Build the candidates of a budget.

        Args:
            budget: What each may cost.
            specs: What the user named; None for all named methods.
            compositions: With all named methods, also combinations of scorers and pruners that are none of them.

        Raises:
            ConfigError: Two candidates have the same name, or something named is no candidate.
            UnknownNameError: No method has a name.
        """
        if specs is None:
            return self._default(budget, None, compositions)
        single: list[tuple[str, Method]] = []
        names: list[str] = []
        for item in specs:
            if isinstance(item, str):
                names.append(item)
            elif isinstance(item, CandidateEntry):
                if item.name is not None and item.alone:
                    names.append(item.name)
                else:
                    single.append((item.title, item.method(budget)))
            elif isinstance(item, Candidate):
                single.append((item.name, item.method))
            elif not isinstance(item, Method):
                what = f"a candidate is {type(item).__name__}"
                raise ConfigError(what, "give names of methods, tp.Method objects, or candidates")
            elif item.label is None:
                raise ConfigError("a candidate has no label, so tables could not name it", "give the Method a label")
            else:
                single.append((item.label, item))
        if not names and not single:
            raise ConfigError("there are no candidates", "name some, or leave them out for all named methods")
        pool = self._default(budget, names, False)
        for name, method in single:
            self._add(pool, name, method.model_copy(update={"budget": budget, "label": name}))
        self._add_random(pool, budget)
        return pool

    def _default(self, budget: Budget, names: list[str] | None, compositions: bool) -> CandidatePool:
        candidates, refused = default_candidates(
            self.adapter,
            budget,
            methods=names,
            curves=self.curves,
            visual=self.visual,
            text=self.text,
            compositions=compositions,
        )
        for place, item in enumerate(candidates):
            if keeps_at_random(item.method.pruner):  # with the tune's seed; methods that the user made stay as they are
                candidates[place] = replace(item, method=item.method.model_copy(update={"pruner": self._random}))
        return CandidatePool(candidates, refused)

    @property
    def _random(self) -> TopK:
        return TopK(scorer=Random(seed=self.seed))

    def _add(self, pool: CandidatePool, name: str, method: Method) -> None:
        """Add a single method, with fixed layers."""
        if name in pool.refused or any(name == candidate.name for candidate in pool.candidates):
            raise ConfigError(f"two candidates are called {name!r}", "give one of them another label")
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
            pool.refused[name] = str(error)
        else:
            pool.candidates.append(Candidate(name, method, "random" if keeps_at_random(method.pruner) else "named"))

    def _add_random(self, pool: CandidatePool, budget: Budget) -> None:
        """Random tokens before the layers of every candidate, so that each has its equal in cost."""
        there = {
            fixed_layers(candidate.method) for candidate in pool.candidates if keeps_at_random(candidate.method.pruner)
        }
        for layers in dict.fromkeys(fixed_layers(candidate.method) for candidate in pool.candidates):
            if layers in there:
                continue
            name = f"random: {layer_words(layers)}"
            if any(name == other.name for other in pool.candidates):
                raise ConfigError(f"a candidate that is not random is called {name!r}", "give it another label")
            method = Method(layers=Fixed(layers=layers), pruner=self._random, budget=budget, label=name)
            pool.candidates.append(Candidate(name, method, "random"))


def as_list(specs: object) -> list[Any]:
    """Check that the candidates are a list; iterating a text or a Method would yield nonsense.

    Raises:
        ConfigError: They are none.
    """
    if not isinstance(specs, Iterable) or isinstance(specs, str | Mapping | Method | CandidateEntry):
        what = f"the candidates are {type(specs).__name__}"
        raise ConfigError(what, "give a list of names of methods, tp.Method objects, or candidates")
    return list(specs)
