"""What a component declares is true: of every scorer and pruner, and of every named method, also those of plugins."""

from __future__ import annotations

import itertools
from functools import lru_cache
from typing import Any, Literal, get_args, get_origin

import pytest
import torch
from torch import Tensor

import tokenprune as tp
from tests.support.declared import changes_with_others, changes_with_text, refusals, stages
from tokenprune.core import plugins
from tokenprune.core.component import FromRegistry
from tokenprune.core.tunable import tunable_fields, variants
from tokenprune.errors import ConfigError
from tokenprune.pruners.base import Pruner, Selection
from tokenprune.pruners.topk import TopK
from tokenprune.scorers.annotation import Annotation
from tokenprune.scorers.base import Scorer
from tokenprune.scorers.instruction import Instruction
from tokenprune.scorers.random import Random
from tokenprune.signals.context import PruneContext
from tokenprune.signals.signal_reader import TowerLayerNumber
from tokenprune.signals.signals import WITH_TEXT, DeclaredSignals

#: What stands in the fields that a component leaves open.
FILLING = {"scorers": {"name": "norm", "source": "hidden"}, "pruners": {"name": "max_min"}}
#: Fields whose values read the same, or need what is not here.
ELSEWHERE = {"backend"}


def filled(cls: type[Any]) -> dict[str, Any]:
    """Values for a component's required fields."""
    return {
        name: next(FILLING[mark.kind] for mark in field.metadata if isinstance(mark, FromRegistry))
        for name, field in cls.model_fields.items()
        if field.is_required()
    }


def settings(cls: type[Any]) -> list[Any]:
    """A component with its tunable values and with all values of fields that name one of several ways."""
    named = {
        name: get_args(field.annotation) if get_origin(field.annotation) is Literal else (False, True)
        for name, field in cls.model_fields.items()
        if (get_origin(field.annotation) is Literal or field.annotation is bool) and name not in ELSEWHERE
    }
    made = []
    for values in itertools.product(*named.values()):
        try:
            component = cls(**filled(cls), **dict(zip(named, values, strict=True)))
        except ConfigError:
            continue  # a rule between its fields
        own = [path for path in tunable_fields(component, 4) if "." not in path]  # those of scorers: at the scorers
        made += [variant for variant in variants(component, own, tower_layers=4) if variant not in made]
    return made


def paired(made: list[Any]) -> list[Any]:
    """Few of some components, which have every two values of two fields that any of them has together."""
    held = []
    for component in made:
        values = [(name, repr(getattr(component, name))) for name in type(component).model_fields]
        held.append(set(itertools.combinations([("class", ""), *values], 2)))
    missing, chosen = set().union(*held), []
    while missing:
        best = max(range(len(made)), key=lambda at: len(held[at] & missing))
        chosen.append(made[best])
        missing -= held[best]
    return chosen or made


@lru_cache
def pruners(name: str, pairs: bool = False) -> list[Pruner]:
    """The pruners that stand behind a name: of a scorer, a pruner, or a named method.

    Args:
        name: The kind, and the name.
        pairs: Few settings, with all pairs of values. What a component reads is tried with all settings; comparisons of
            its choices take several times as long.
    """
    kind, _, name = name.partition(" ")
    if kind == "method":
        return stages(tp.load_method(name).pruner)
    made = settings(plugins.registry(f"{kind}s").get(name))
    made = paired(made) if pairs else made
    return [TopK(scorer=scorer) for scorer in made] if kind == "scorer" else made


#: `stages` does not choose by itself: the pruners of named methods are tested stage by stage.
NAMES = [
    *(f"scorer {name}" for name in plugins.registry("scorers").names()),
    *(f"pruner {name}" for name in plugins.registry("pruners").names() if name != "stages"),
    *(f"method {named.name}" for named in tp.list_methods()),
]
#: More than a second for all of their settings; the named methods have one of them.
LONG = {
    *(f"scorer {name}" for name in ("leverage", "matrix_entropy", "rebuild_error")),
    *(f"pruner {name}" for name in ("apet", "flashvid", "hiprune", "mmr", "prunesid", "scope", "tome")),
    *(f"pruner {name}" for name in ("vispruner", "visionzip")),
}
CASES = [pytest.param(name, marks=pytest.mark.slow if name in LONG else ()) for name in NAMES]


@pytest.mark.each("name")
@pytest.mark.parametrize("name", CASES)
def test_a_component_runs_with_what_it_declares(name: str) -> None:
    for pruner in pruners(name):
        assert not refusals(pruner), pruner


@pytest.mark.each("name")
@pytest.mark.parametrize("name", CASES)
def test_without_text_in_its_needs_a_choice_is_the_same_for_every_text(name: str) -> None:
    for pruner in pruners(name, pairs=True):
        if not pruner.needs & WITH_TEXT:
            assert not changes_with_text(pruner), pruner


@pytest.mark.each("name")
@pytest.mark.parametrize("name", CASES)
def test_a_choice_depends_on_other_images_where_that_is_declared(name: str) -> None:
    """Some of a component's settings may compare nothing in these prompts, but not all of them."""
    found = [
        (pruner, changes_with_others(pruner)) for pruner in pruners(name, pairs=True) if not pruner.needs & WITH_TEXT
    ]
    for pruner, changes in found:
        assert pruner.across_images or not changes, pruner
    declared = [changes for pruner, changes in found if pruner.across_images]
    assert any(declared) == bool(declared)


# ---- false declarations ------------------------------------------------------------------------------------------


class Untold(Instruction):
    """`instruction` as it was: it read the text and declared hidden states."""

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"hidden"})


class UntoldAnnotation(Annotation):
    """Reads what it does not declare."""

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"text"})


class UntoldRandom(Random):
    """Reads what it does not declare."""

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"hidden"})


class UntoldLayer(Scorer):
    """Reads another layer of the tower than its field names."""

    layer: TowerLayerNumber = -2

    def score(self, ctx: PruneContext) -> Tensor:
        return ctx.vision(-1).attention


class UntoldImages(Scorer):
    """Compares with the mean of all images, and does not say so."""

    def score(self, ctx: PruneContext) -> Tensor:
        real = ctx.visual_mask[:, :, None]
        mean = (ctx.hidden * real).sum(1, keepdim=True) / real.sum(1, keepdim=True)
        return (ctx.hidden - mean).norm(dim=-1)


class ToldImages(UntoldImages):
    """The same, and says so."""

    @property
    def across_images(self) -> bool:
        return True


class ToldForNothing(Pruner):
    """Says that it compares images, and does not."""

    @property
    def across_images(self) -> bool:
        return True

    def select(self, ctx: PruneContext) -> Selection:
        return TopK(scorer={"name": "norm", "source": "hidden"}).select(ctx)


@pytest.mark.parametrize(
    ("scorer", "words"),
    [
        (Untold(), "a component read 'text', which it does not declare; add 'text' to its needs"),
        (UntoldAnnotation(), "'annotations', which it does not declare"),
        (UntoldRandom(), "'sample_ids', which it does not declare"),
        (UntoldLayer(), "read layer -1 of the vision tower, which it does not declare; add -1 to its vision_layers"),
    ],
)
def test_undeclared_reads_are_found(scorer: Scorer, words: str) -> None:
    for pruner in (TopK(scorer=scorer), tp.load_method("cdpruner").pruner.model_copy(update={"relevance": scorer})):
        found = refusals(pruner)
        assert found
        assert all(words in line for line in found)


def test_a_read_of_text_is_found_without_the_error_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The method `cdpruner` as it was: its choice changed with the text, and nothing said so."""
    monkeypatch.setattr(DeclaredSignals, "sequence", lambda self: self.source.sequence())
    monkeypatch.setattr(Instruction, "needs", Untold.needs)
    pruner = tp.load_method("cdpruner").pruner
    assert pruner.needs == {"hidden"}
    assert not refusals(pruner)
    assert changes_with_text(pruner)


def test_a_false_word_on_other_images_is_found() -> None:
    untold, told = TopK(scorer=UntoldImages()), TopK(scorer=ToldImages())
    assert not untold.across_images
    assert changes_with_others(untold)
    assert told.across_images
    assert tp.load_method("mmr").pruner.model_copy(update={"scorer": ToldImages()}).across_images
    assert not changes_with_others(ToldForNothing())


def test_all_kinds_of_reads_are_compared() -> None:
    """Components with and without text, with random parts, of layers of the tower, of several images."""
    made = [pruner for name in NAMES for pruner in pruners(name)]
    assert {name for pruner in made for name in pruner.needs} >= {"text", "annotations", "sample_ids", "grid", "key"}
    across = {type(pruner).__name__ for pruner in made if pruner.across_images}
    assert across == {"DyCoke", "Evs", "FlashVID", "FrameFusion", "VidCom2"}
    assert any(pruner.adaptive for pruner in made)
    assert torch.tensor([len(pruners(name)) for name in NAMES]).min() >= 1
