"""Candidates of a tune: named methods and their variants, compositions of scorers and pruners, and random."""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import zip_longest

from tokenprune.adapters.base import Adapter
from tokenprune.budgets.base import Budget
from tokenprune.core.references import ORACLE
from tokenprune.core.tunable import get_field, tunable_fields, variants
from tokenprune.errors import ConfigError, PluginError, TokenPruneError
from tokenprune.methods.named import NamedMethod, find_shipped, list_methods
from tokenprune.pruners.base import Pruner
from tokenprune.pruners.topk import TopK
from tokenprune.scorers.random import Random
from tokenprune.selectors.base import Trial
from tokenprune.selectors.entropy_profile import EntropyProfile
from tokenprune.tuning.candidate_maker import Candidate, CandidateMaker, definition
from tokenprune.tuning.composed import compositions_of, random_of, value_words
from tokenprune.tuning.layers import layer_words, own_layers, schedules, single_layers

#: Named methods that are no candidates unless they are named: upper bounds and null models, by how their names begin.
ONLY_IF_NAMED = (ORACLE, "norm-", "energy-")


def default_candidates(
    adapter: Adapter,
    budget: Budget,
    *,
    methods: Sequence[str] | None = None,
    curves: EntropyProfile | None = None,
    visual: int | Collection[int],
    text: int = 32,
    compositions: bool = True,
    limit_per_method: int = 8,
) -> tuple[list[Candidate], dict[str, str]]:
    """The candidates for a model and a budget. All have fixed layers and this budget; nothing runs.

    Every named method has a small space of its own: the layers of :mod:`tokenprune.tuning.layers` and the values that
    its components declare (:mod:`tokenprune.core.tunable`). If all combinations that fit model and budget are at most
    ``limit_per_method``, all are candidates. Otherwise one factor changes at a time: the method as it is, then in turn
    another layer with the own values and another value of each field at the own layer, until the limit is reached. (If
    the own layer does not fit, the first one that does takes its place.)

    A method that reads the language model only has no variants that read the vision tower. A method whose selector
    verifies fields together with the layer has all combinations of these, whatever the limit.
    Selectors that search are replaced by these layers, and budgets that leave the count to the pruner by the given one.
    Random is always among the candidates: at layer 0, at the layers that most other candidates use, and at the schedule
    of several stages that most of them use. Compositions that do not fit are left out. Of candidates with equal
    definitions the first one stays: named methods come before random, then the first candidate of every method that
    does not fit as it is, then variants, then compositions.

    Args:
        adapter: The model's adapter.
        budget: The budget of all candidates.
        methods: Names of methods, or paths of their YAML files; None for all installed ones except upper bounds and
            null models (:data:`ONLY_IF_NAMED`).
        curves: Entropy curves of the model; without them no layers round the collapse are tried.
        visual: Visual tokens of a sample; of several sizes those of the smallest and of the largest one, as a
            budget in tokens is hard to meet for the one and a ratio for the other.
        text: Text tokens of a sample, for budgets in FLOPs.
        compositions: Whether scorers are composed with diversity pruners.
        limit_per_method: Candidates of one method at most, at least 1.

    Returns:
        The candidates, always in the same order; and by name the reason why a method has none.

    Raises:
        ConfigError: ``limit_per_method`` is less than 1.
        UnknownNameError: No method of a given name is installed.
        PluginError: A given method is shipped twice, or its file is broken.
        MissingDataError: The file of a given method does not exist.
    """
    if limit_per_method < 1:
        raise ConfigError(f"limit_per_method is {limit_per_method}", "give 1 or more")
    counts = (visual,) if isinstance(visual, int) else tuple(visual)
    maker = CandidateMaker(adapter, budget, counts, text, curves, adapter.tower_layers)
    refused: dict[str, str] = {}
    by_method: dict[str, list[Candidate]] = {}
    for shipped in _shipped(methods):
        if shipped.name == "random":
            continue  # made below
        try:
            by_method[shipped.name] = list(_of_method(maker, shipped, limit_per_method))
        except TokenPruneError as error:
            refused[shipped.name] = str(error)
    others = [candidate for made in by_method.values() for candidate in made]
    if compositions:
        others += list(compositions_of(maker, set(map(definition, others))))
    chance = random_of(maker, others)
    if not chance:
        refused["random"] = maker.refusal((0,), TopK(scorer=Random())) or ""

    kept: dict[str, Candidate] = {}  # by definition
    named = [candidate for candidate in others if candidate.origin == "named"]
    first = [made[0] for made in by_method.values()]
    for candidate in [*named, *chance, *first, *others]:
        kept.setdefault(definition(candidate), candidate)
    for name, made in by_method.items():
        if not any(kept[definition(candidate)] is candidate for candidate in made):
            same = kept[definition(made[0])].name
            refused[name] = f"with this budget it is no method of its own: its candidates are others', e.g. {same!r}"
    return _unique(kept.values()), refused


def _shipped(methods: Sequence[str] | None) -> list[NamedMethod]:
    """The named methods to make candidates of, each once."""
    if methods is not None:
        return [find_shipped(name) for name in dict.fromkeys(methods)]
    return [method for method in list_methods() if not method.name.startswith(ONLY_IF_NAMED)]


def _of_method(maker: CandidateMaker, shipped: NamedMethod, limit: int) -> Iterator[Candidate]:
    """The candidates of a named method.

    Raises:
        TokenPruneError: There is none; why not at the earliest of its layers.
    """
    if shipped.problem is not None:
        raise PluginError(f"its file cannot be read ({shipped.problem})", f"repair {shipped.distribution}")
    method = shipped.method()
    method.check_fits(maker.adapter.architecture)
    own = own_layers(method, maker.adapter, maker.curves)
    options = (
        schedules(own)
        if own is not None and len(own) > 1
        else single_layers(own[0] if own else None, maker.adapter.num_layers, maker.curves)
    )
    base = maker.fitting(method.pruner)
    fields = tunable_fields(base, maker.tower_layers)
    by_field = [_alike(base, variants(base, [path], maker.tower_layers))[1:] for path in fields]
    single = [base, *(pruner for pruners in by_field for pruner in pruners)]
    fitting = [layers for layers in options if any(maker.possible(layers, pruner) for pruner in single)]
    earlier = [trial for trial in method.layers.earlier_trials(maker.tower_layers) if _fits(maker, trial)]
    if not fitting and not earlier:
        maker.candidate(shipped.name, "named", min(options, default=(1,)), base)
        raise AssertionError("what fits is among the fitting layers")
    for trial in earlier:
        name = f"{shipped.name}: {trial.name}"
        how = (method.positions, method.cut_earlier_caches)
        yield maker.candidate(name, "variant", trial.layers, _pruner(trial), *how)
    verified = list(method.layers.verified_fields)
    pruners = variants(base, verified or None, maker.tower_layers)
    combinations = [
        (layers, pruner) for layers in fitting for pruner in (pruners if verified else _alike(base, pruners))
    ]
    if verified:  # the method is defined by the comparison of all of them
        limit = max(limit, len(combinations))
    if len(combinations) > limit:
        factors = [
            [(layers, base) for layers in fitting[1:]],
            *([(fitting[0], pruner) for pruner in pruners] for pruners in by_field),
        ]
        turns = [pair for turn in zip_longest(*factors) for pair in turn if pair is not None]
        combinations = [(fitting[0], base), *turns]
    made = 0
    for layers, pruner in combinations:
        changes = _changes(method.pruner, pruner, list(fields), layers)
        if layers != own:
            changes = [layer_words(layers), *changes]
        name = f"{shipped.name}: {', '.join(changes)}" if changes else shipped.name
        try:
            how = (method.positions, method.cut_earlier_caches)
            candidate = maker.candidate(name, "variant" if changes else "named", layers, pruner, *how)
        except TokenPruneError:
            continue
        yield candidate
        made += 1
        if made == limit:
            return


def _pruner(trial: Trial) -> Pruner:
    """The pruner of a trial."""
    assert isinstance(trial.pruner, Pruner)
    return trial.pruner


def _fits(maker: CandidateMaker, trial: Trial) -> bool:
    """Whether the model can be pruned as a trial says, within the budget."""
    return maker.possible(trial.layers, _pruner(trial))


def _alike(base: Pruner, pruners: Sequence[Pruner]) -> list[Pruner]:
    """The variants that read the vision tower only if the method does.

    Another one is no variant of the method, but of those that prune before the language model: a score of the vision
    tower is known there, and costs no layer.
    """
    return [pruner for pruner in pruners if base.vision_layers or not pruner.vision_layers]


def _unique(candidates: Iterable[Candidate]) -> list[Candidate]:
    """The candidates with unique names: a name that stands already gets a number."""
    seen: Counter[str] = Counter()
    unique = []
    for candidate in candidates:
        seen[candidate.name] += 1
        if seen[candidate.name] > 1:
            name = f"{candidate.name} ({seen[candidate.name]})"
            method = candidate.method.model_copy(update={"label": name})
            candidate = replace(candidate, name=name, method=method)
        unique.append(candidate)
    return unique


def _changes(own: Pruner, pruner: Pruner, paths: Sequence[str], layers: Sequence[int]) -> list[str]:
    """The fields that differ from the method's own, in words: ``source key``, ``threshold 0.4 before layer 1``."""
    words = []
    for path in paths:
        value = get_field(pruner, path)
        if value == get_field(own, path):
            continue
        parts = path.split(".")
        named = [part for part in parts if not part.isdigit() and part not in ("pruners", "scorer")] or parts[-1:]
        if named[-1] == "layer":
            named[-1] = "tower_layer"  # not a layer before which tokens are dropped
        text = f"{' '.join(named).replace('_', ' ')} {value_words(value)}"
        number = parts[1] if parts[0] == "pruners" and parts[1].isdigit() else None
        words.append(text if number is None else f"{text} before layer {layers[int(number)]}")
    return words
