"""Plugins, two ways: entry points made up here, and the example distribution as `pip` installs it."""

from __future__ import annotations

import re
import sys
import types
from collections.abc import Iterator
from importlib import metadata
from importlib.metadata import EntryPoint, EntryPoints
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import tokenprune as tp
from tests.experiment.test_cli import call
from tests.support.tiny import CASES
from tokenprune.core import plugins
from tokenprune.errors import PluginError, ScoreError, UnknownNameError
from tokenprune.pruners.base import Pruner, Selection
from tokenprune.scorers.base import Scorer
from tokenprune.signals.context import PruneContext

REAL = metadata.entry_points


class Constant(Scorer):
    """A scorer as a plugin would bring it."""

    value: float = 0.0

    @property
    def needs(self) -> frozenset[str]:
        return frozenset()

    def score(self, ctx: PruneContext) -> Tensor:
        return torch.full(ctx.visual_mask.shape, self.value)


class NoScorer:
    """Something else under a scorer's name."""


class Unfinished(Scorer):
    """A scorer without its method."""


class Wrong(Scorer):
    """Returns what no scorer should."""

    how: str

    def score(self, ctx: PruneContext) -> Any:
        shape = ctx.visual_mask.shape
        results = {
            "none": lambda: None,
            "numpy": lambda: np.zeros(shape),
            "list": lambda: [1.0],
            "complex": lambda: torch.zeros(shape, dtype=torch.complex64),
            "bool": lambda: torch.zeros(3, dtype=torch.bool),
            "int": lambda: torch.zeros(shape, dtype=torch.int64),
            "shape": lambda: torch.zeros(1, 2, 3),
            "raises": lambda: {}["nothing"],
        }
        return results[self.how]()


class WrongPruner(Pruner):
    """Returns what no pruner should."""

    how: str

    def select(self, ctx: PruneContext) -> Any:
        results = {
            "none": lambda: None,
            "numpy": lambda: Selection(keep=np.ones(ctx.visual_mask.shape, dtype=bool)),  # type: ignore[arg-type]
            "raises": lambda: {}["nothing"],
        }
        return results[self.how]()


PARTS = (Constant, NoScorer, Unfinished, Wrong, WrongPruner)


class Fake:
    """Entry points added to the real ones."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.points: list[EntryPoint] = []
        module = types.ModuleType("fake_plugin")
        module.__dict__.update({cls.__name__: cls for cls in PARTS})
        monkeypatch.setitem(sys.modules, "fake_plugin", module)
        monkeypatch.setattr(metadata, "entry_points", self.entry_points)

    def add(self, name: str, value: str, distribution: str, kind: str = "scorers") -> None:
        """Register a name as the metadata of `distribution` would."""
        point = EntryPoint(name, value, f"tokenprune.{kind}")
        vars(point)["dist"] = types.SimpleNamespace(name=distribution)
        self.points.append(point)
        plugins.refresh()

    def entry_points(self, **params: Any) -> EntryPoints:
        """Stands in for `importlib.metadata.entry_points`."""
        return EntryPoints([*REAL(**params), *EntryPoints(self.points).select(**params)])


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[Fake]:
    yield Fake(monkeypatch)
    monkeypatch.undo()
    plugins.refresh()


def method(scorer: Any) -> tp.Method:
    """Keep a quarter before layer 2."""
    return tp.Method.from_dict(
        {
            "layers": {"name": "fixed", "layers": [2]},
            "pruner": {"name": "topk", "scorer": scorer},
            "budget": {"name": "keep_ratio", "ratio": 0.25},
        }
    )


def prune(how: tp.Method) -> tp.Run:
    """One prefill of a tiny LLaVA."""
    case = CASES["llava"]
    model = case.build()
    with torch.no_grad(), tp.apply(model, how) as run:
        model(**case.inputs(model))
    return run


# ---- made-up entry points ------------------------------------------------------------------------------------------


def test_a_plugins_class_is_found_and_configured(fake: Fake) -> None:
    fake.add("constant", "fake_plugin:Constant", "fake-dist")
    how = method({"name": "constant", "value": 2.0})
    assert how.pruner.scorer == Constant(value=2.0)  # type: ignore[attr-defined]
    assert how.model_dump(mode="json")["pruner"]["scorer"] == {"name": "constant", "value": 2.0}
    assert prune(how).stages[0].after == [4, 4]


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("no_such_module:Thing", ["ModuleNotFoundError", "no_such_module"]),
        ("fake_plugin:Missing", ["AttributeError", "Missing"]),
        ("fake_plugin:NoScorer", ["is not a Scorer", "tokenprune.scorers.base"]),
        ("fake_plugin:__name__", ["is not a Scorer"]),
        ("fake_plugin:Unfinished", ["lacks score", "tokenprune.scorers.base"]),
    ],
)
def test_a_broken_plugin_is_named_and_hurts_nobody_else(fake: Fake, value: str, says: list[str]) -> None:
    fake.add("broken", value, "broken-dist")
    registry = plugins.registry("scorers")
    assert "broken" in registry.names()
    with pytest.raises(PluginError) as caught:
        registry.get("broken")
    for part in ["'broken'", "broken-dist", value, *says]:
        assert part in str(caught.value)
    with pytest.raises(tp.TokenPruneError, match=r"pruner.*broken-dist"):
        method("broken")
    assert prune(method("random")).stages[0].after == [4, 4]
    assert plugins.registry("scorers").name_of(Constant) not in str(tp.Method.model_json_schema())  # it still builds


def test_an_unfinished_scorer_is_listed_as_broken(
    fake: Fake, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.add("unfinished", "fake_plugin:Unfinished", "half-dist")
    assert call(monkeypatch, "list", "scorers") == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "unfinished half-dist BROKEN: scorer 'unfinished' of half-dist (fake_plugin:Unfinished) lacks score" in shown


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("none", "returned NoneType at layer 2"),
        ("numpy", "returned ndarray at layer 2"),
        ("list", "returned list at layer 2"),
        ("complex", "returned torch.complex64 at layer 2"),
        ("bool", "returned shape (3,) at layer 2"),
        ("int", "returned torch.int64 at layer 2"),
        ("shape", "returned shape (1, 2, 3) at layer 2"),
        ("raises", "failed at layer 2 (KeyError: 'nothing')"),
    ],
)
def test_a_scorer_that_goes_wrong_is_named_with_its_distribution(fake: Fake, how: str, words: str) -> None:
    fake.add("wrong", "fake_plugin:Wrong", "wrong-dist")
    with pytest.raises(ScoreError) as caught:
        prune(method({"name": "wrong", "how": how}))
    assert str(caught.value).startswith(f"scorer 'wrong' of wrong-dist {words}; ")
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value.__cause__, KeyError) == (how == "raises")


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("none", "returned NoneType at layer 2"),
        ("numpy", "returned keep of ndarray at layer 2"),
        ("raises", "failed at layer 2 (KeyError: 'nothing')"),
    ],
)
def test_a_pruner_that_goes_wrong_is_named_with_its_distribution(fake: Fake, how: str, words: str) -> None:
    fake.add("wrong", "fake_plugin:WrongPruner", "wrong-dist", "pruners")
    data = method("random").model_dump() | {"pruner": {"name": "wrong", "how": how}}
    with pytest.raises(ScoreError) as caught:
        prune(tp.Method.from_dict(data))
    assert str(caught.value).startswith(f"pruner 'wrong' of wrong-dist {words}; ")
    assert isinstance(caught.value.__cause__, KeyError) == (how == "raises")


def test_nothing_is_imported_before_it_is_asked_for(fake: Fake) -> None:
    fake.add("broken", "no_such_module:Thing", "broken-dist")
    registry = plugins.registry("scorers")
    assert registry.entries("broken")[0].target == "no_such_module:Thing"
    assert registry.get("random").__name__ == "Random"


def test_a_name_that_two_distributions_register_names_both(fake: Fake) -> None:
    fake.add("constant", "fake_plugin:Constant", "first-dist")
    fake.add("constant", "fake_plugin:NoScorer", "second-dist")
    with pytest.raises(PluginError, match=r"first-dist \(fake_plugin:Constant\) and second-dist"):
        plugins.registry("scorers").get("constant")
    assert prune(method("random")).stages[0].after == [4, 4]


def test_our_own_name_taken_by_a_plugin_names_both(fake: Fake) -> None:
    fake.add("random", "fake_plugin:Constant", "greedy-dist")
    with pytest.raises(PluginError, match=r"tokenprune-mllm \(.*Random\) and greedy-dist"):
        plugins.registry("scorers").get("random")


def test_an_installation_listed_twice_is_no_collision(fake: Fake) -> None:
    for _ in range(2):
        fake.add("constant", "fake_plugin:Constant", "fake-dist")
    assert plugins.registry("scorers").get("constant") is Constant


def test_the_off_switches(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.add("constant", "fake_plugin:Constant", "fake-dist")
    fake.add("random", "fake_plugin:NoScorer", "greedy-dist")
    with plugins.builtin_only():
        registry = plugins.registry("scorers")
        assert "constant" not in registry.names()
        assert registry.get("random").__module__ == "tokenprune.scorers.random"
    assert "constant" in plugins.registry("scorers").names()
    monkeypatch.setenv("TOKENPRUNE_NO_PLUGINS", "1")
    with pytest.raises(UnknownNameError, match="constant"):
        plugins.registry("scorers").get("constant")
    monkeypatch.setenv("TOKENPRUNE_NO_PLUGINS", "0")
    assert plugins.registry("scorers").get("constant") is Constant


def test_an_unknown_name_suggests_near_ones() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown scorer 'randon'; did you mean 'random'"):
        plugins.registry("scorers").get("randon")


def test_tasks_with_data_of_their_own_come_from_plugins() -> None:
    with plugins.builtin_only():
        assert plugins.registry("tasks").names() == ["vqa"]


@pytest.mark.parametrize("kind", plugins.COMPONENT_KINDS)
def test_our_own_components_come_the_same_way(kind: str) -> None:
    with plugins.builtin_only():
        registry = plugins.registry(kind)
        assert registry.names(), f"no entry point in tokenprune.{kind}"
        for name in registry.names():
            cls = registry.get(name)
            assert issubclass(cls, registry.base)
            assert registry.entries(name)[0].distribution == plugins.DISTRIBUTION
            assert registry.name_of(cls) == name or kind == "adapters"


# ---- the example distribution --------------------------------------------------------------------------------------


@pytest.fixture
def example() -> None:
    """The installed example plugin."""
    try:
        metadata.distribution("tokenprune-example")
    except metadata.PackageNotFoundError:
        pytest.skip("tokenprune-example is not installed: pip install --no-deps -e plugins/tokenprune-example")


@pytest.mark.usefixtures("example")
def test_the_installed_scorer_prunes() -> None:
    registry = plugins.registry("scorers")
    assert registry.entries("centroid_distance")[0].distribution == "tokenprune-example"
    for metric in ("euclidean", "cosine"):
        run = prune(method({"name": "centroid_distance", "metric": metric}))
        assert run.stages[0].after == [4, 4]
        assert run.stages[0].reason is None


@pytest.mark.usefixtures("example")
def test_the_installed_scorers_fields_are_checked() -> None:
    with pytest.raises(tp.TokenPruneError, match=r"metric.*'euclidean' or 'cosine'"):
        method({"name": "centroid_distance", "metric": "manhattan"})


@pytest.mark.usefixtures("example")
def test_the_off_switch_hides_the_installed_scorer() -> None:
    with plugins.builtin_only(), pytest.raises(tp.TokenPruneError, match="unknown scorer 'centroid_distance'"):
        method("centroid_distance")


@pytest.mark.usefixtures("example")
def test_the_installed_method_is_loaded_by_name() -> None:
    named = {found.name: found for found in tp.list_methods()}
    assert named["centroid"].distribution == "tokenprune-example"
    assert named["centroid"].problem is None
    how = tp.load_method("centroid", average_ratio=0.75)
    assert how.model_dump(mode="json")["pruner"]["scorer"]["name"] == "centroid_distance"
    assert prune(how).stages[0].after == [8, 8]
    with plugins.builtin_only(), pytest.raises(UnknownNameError, match="centroid"):
        tp.load_method("centroid")


@pytest.mark.usefixtures("example")
def test_the_command_line_lists_what_is_installed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TOKENPRUNE_NO_PLUGINS", "0")  # the option sets it for the whole process

    def listed(*options: str) -> str:
        assert call(monkeypatch, *options, "list") == 0
        return capsys.readouterr().out

    every, builtin = listed(), listed("--no-plugins")
    for name in ("centroid_distance", "centroid"):
        assert re.search(rf"^{name} +tokenprune-example ", every, re.M)
        assert name not in builtin
