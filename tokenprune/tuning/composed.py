"""Candidates that are no named method: scorers put together with diversity pruners, and random tokens."""

from collections import Counter
from collections.abc import Collection, Iterator, Sequence

from tokenprune.core import plugins
from tokenprune.core.component import Component
from tokenprune.core.tunable import get_field
from tokenprune.errors import TokenPruneError
from tokenprune.pruners.dpp import Dpp
from tokenprune.pruners.max_min import MaxMin
from tokenprune.pruners.pool import Pool
from tokenprune.pruners.topk import TopK
from tokenprune.scorers.base import Scorer
from tokenprune.scorers.fastv import FastV
from tokenprune.scorers.instruction import Instruction
from tokenprune.scorers.matrix_entropy import MatrixEntropy
from tokenprune.scorers.random import Random
from tokenprune.scorers.vision_attention import VisionAttention
from tokenprune.tuning.candidate_maker import Candidate, CandidateMaker, definition
from tokenprune.tuning.layers import layer_words, schedules

#: Layers at which random is tried beside layer 0: those that most candidates use.
RANDOM_LAYERS = 3

#: Compositions at most.
COMPOSITIONS = 12

#: What is composed with diversity pruners, and before which layer. Scorers of plugins come between the two lists.
COMPOSED_FIRST: tuple[tuple[Scorer, int], ...] = (
    (VisionAttention(), 0),
    (VisionAttention(), 1),
    (MatrixEntropy(source="hidden"), 1),
    (MatrixEntropy(source="key"), 1),
)
COMPOSED_THEN: tuple[tuple[Scorer, int], ...] = (
    (Instruction(), 0),
    (FastV(), 1),
    (MatrixEntropy(source="hidden"), 2),
    (MatrixEntropy(source="key"), 2),
)


#: Signals for which no layer of the decoder has to have run.
_NOT_OF_THE_DECODER = {"annotations", "grid", "sample_ids", "tower_value"}


def compositions_of(maker: CandidateMaker, known: Collection[str]) -> Iterator[Candidate]:
    """Scorers as the relevance of a DPP, and as the pool of a max-min choice; at most :data:`COMPOSITIONS`.

    Args:
        maker: Model and budget; what does not fit is left out.
        known: Definitions of other candidates, which are left out, too.
    """
    made = 0
    for scorer, layer in (*COMPOSED_FIRST, *_of_plugins(), *COMPOSED_THEN):
        fitting = maker.fitting(scorer)
        composed = {"dpp": Dpp(relevance=fitting), "max_min": Pool(scorer=fitting, pruner=MaxMin())}
        for word, pruner in composed.items():
            name = f"{word} over {_words(fitting)}, layer {layer}"
            if made == COMPOSITIONS or not maker.possible((layer,), pruner):
                continue
            candidate = maker.candidate(name, "composition", (layer,), pruner)
            if definition(candidate) not in known:
                yield candidate
                made += 1


def _of_plugins() -> Iterator[tuple[Scorer, int]]:
    """Scorers of plugins that need no settings, before layer 1, or 0 if they read nothing of the decoder."""
    registry = plugins.registry("scorers")
    for name in registry.names():
        if any(entry.distribution == plugins.DISTRIBUTION for entry in registry.entries(name)):
            continue
        try:
            scorer: Scorer = registry.get(name)()
        except TokenPruneError:
            continue  # it is broken, or needs settings
        yield scorer, 1 if scorer.needs - _NOT_OF_THE_DECODER else 0


def random_of(maker: CandidateMaker, others: Sequence[Candidate]) -> list[Candidate]:
    """Random at layer 0, at the layers that most others use, and at the schedule that most of them use."""
    used: Counter[tuple[int, ...]] = Counter(get_field(other.method.layers, "layers") for other in others)
    frequent = sorted(used, key=lambda layers: (-used[layers], layers))
    single = [layers for layers in frequent if len(layers) == 1 and layers != (0,)][:RANDOM_LAYERS]
    quarters = tuple(dict.fromkeys(int(share * maker.adapter.num_layers + 0.5) for share in (0.25, 0.5, 0.75)))
    several = [layers for layers in frequent if len(layers) > 1] + schedules(quarters)
    pyramid = next((layers for layers in several if maker.possible(layers, TopK(scorer=Random()))), None)
    chosen = [(0,), *sorted(single), *([] if pyramid is None else [pyramid])]
    made = []
    for layers in chosen:
        if maker.possible(layers, TopK(scorer=Random())):
            made.append(maker.candidate(f"random: {layer_words(layers)}", "random", layers, TopK(scorer=Random())))
    return made


def _words(scorer: Scorer) -> str:
    """A scorer in words: its name, and the values that are not the default ones."""
    fields = type(scorer).model_fields
    values = [getattr(scorer, name) for name, info in fields.items() if getattr(scorer, name) != info.default]
    return " ".join([plugins.registry("scorers").name_of(type(scorer)), *map(value_words, values)])


def value_words(value: object) -> str:
    """A field's value in words."""
    if isinstance(value, bool) or value is None:
        return {True: "on", False: "off", None: "none"}[value]
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, Component):
        return type(value).__name__
    return str(value)
