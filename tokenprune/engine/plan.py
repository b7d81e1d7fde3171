"""The stages of an applied method, checked against the model before anything runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tokenprune.adapters.base import Adapter
from tokenprune.adapters.towers import TowerSite
from tokenprune.budgets.base import Budget, Schedule
from tokenprune.config import Method
from tokenprune.errors import LayerError, UnsupportedFeatureError, UnsupportedModelError
from tokenprune.pruners.base import Pruner
from tokenprune.signals.signals import INPUT_SIGNALS, LAYER_STATES


@dataclass(frozen=True)
class Stage:
    """One pruning stage.

    Attributes:
        number: Its number, from 0.
        layer: Tokens are dropped before this layer.
        pruner: Chooses the tokens that survive it.
    """

    number: int
    layer: int
    pruner: Pruner

    @property
    def layer_states(self) -> frozenset[str]:
        """States of layer K-1 that have to be captured: of ``query``, ``key``, ``value``."""
        wanted = self.pruner.needs & LAYER_STATES
        return wanted | {"query", "key"} if self.reads_attention else wanted

    @property
    def reads_attention(self) -> bool:
        """Whether single attention rows of layer K-1 are read."""
        return "attention" in self.pruner.needs

    @property
    def reads_entering(self) -> bool:
        """Whether single attention rows of layer K itself are read, before it runs."""
        return "entering" in self.pruner.needs

    @property
    def reads_prompt(self) -> bool:
        """Whether what entered layer 0 is read."""
        return "embeddings" in self.pruner.needs


@dataclass(frozen=True)
class Cuts:
    """How a plan cuts caches. Images of a later turn can be pruned by any plan with equal ones.

    Attributes:
        layers: The layers of its stages.
        renumbered: See :class:`Plan`.
        earlier: Whether the caches of the layers before each stage are cut, too.
    """

    layers: tuple[int, ...]
    renumbered: bool
    earlier: bool

    def __str__(self) -> str:
        positions = "renumbered" if self.renumbered else "original"
        earlier = " with cut_earlier_caches" if self.earlier else ""
        return f"before layer {', '.join(map(str, self.layers))} at {positions} positions{earlier}"


@dataclass(frozen=True)
class Plan:
    """The stages of an applied method; immutable.

    Attributes:
        stages: The stages, in the order of their layers.
        budget: Decides how many tokens survive each.
        schedule: The layers, as budgets read them.
        tower_layers: Layers of the vision tower that are read.
        renumbered: Whether the tokens that are left get new positions, without gaps.
        cuts_earlier: Whether the KV caches of the layers before each stage are cut after the prefill.
    """

    stages: tuple[Stage, ...]
    budget: Budget
    schedule: Schedule
    tower_layers: tuple[int, ...]
    renumbered: bool
    cuts_earlier: bool

    @classmethod
    def of(cls, method: Method, layers: Sequence[int], adapter: Adapter) -> Plan:
        """The plan of a method that prunes a model before some layers.

        Raises:
            ConfigError: The method was tuned for a model of another architecture.
            LayerError: A layer is out of range, or the method reads what does not exist before it.
            UnsupportedModelError: The model cannot be pruned exactly there.
            UnsupportedFeatureError: The model's attention implementation cannot be pruned exactly.
        """
        method.check_fits(adapter.architecture)
        layers = tuple(layers)
        method.pruner.check(layers)
        stages = tuple(Stage(number, layer, method.pruner.at(number)) for number, layer in enumerate(layers))
        schedule = Schedule(layers, adapter.num_layers)
        plan = cls(
            stages,
            method.budget,
            schedule,
            tuple(sorted(method.pruner.vision_layers)),
            method.positions == "renumbered",
            method.cut_earlier_caches,
        )
        plan._check(adapter)
        return plan

    @property
    def first(self) -> int:
        """The first layer that sees fewer tokens."""
        return self.stages[0].layer

    @property
    def reads_tower_value(self) -> bool:
        """Whether value states of the vision tower are read."""
        return any("tower_value" in stage.pruner.needs for stage in self.stages)

    @property
    def first_cut(self) -> int:
        """The first layer whose KV cache holds fewer tokens after the prefill."""
        return 0 if self.cuts_earlier else self.first

    @property
    def cuts(self) -> Cuts:
        """How caches that the plan pruned are cut."""
        return Cuts(self.schedule.layers, self.renumbered, self.cuts_earlier)

    def stage_of(self, layer: int) -> Stage:
        """The stage that decides what a layer sees."""
        return next(stage for stage in reversed(self.stages) if stage.layer <= layer)

    def tower_sites(self, adapter: Adapter) -> list[tuple[int, TowerSite]]:
        """Layers of the tower that are read, and where: of both towers, where videos have one of their own."""
        return adapter.tower_sites(self.tower_layers)

    def _check(self, adapter: Adapter) -> None:
        first, last = self.first, self.stages[-1].layer
        if first < 0 or last >= adapter.num_layers:
            raise LayerError(
                f"layer {last if first >= 0 else first} is out of range: the model has {adapter.num_layers} layers",
                f"use 0 to {adapter.num_layers - 1}",
            )
        self.budget.check(self.schedule.layers)
        missing = self.stages[0].pruner.needs - INPUT_SIGNALS
        if first == 0 and missing:
            raise LayerError(
                f"{type(self.stages[0].pruner).__name__} reads {', '.join(sorted(missing))} of the layer before"
                " layer 0, which does not exist",
                "prune at layer 1 or later, or use a scorer that reads hidden states",
            )
        adapter.stack.check_exact(first)
        _check_attention(adapter, first)
        if self.cuts_earlier:
            _check_cut(adapter)
        self._check_tower(adapter)
        for stage in self.stages:
            if stage.layer_states:
                adapter.stack.projections(stage.layer - 1, stage.layer_states)
            if stage.reads_attention:
                adapter.stack.check_attention_rows(stage.layer - 1)
            if stage.reads_entering:
                adapter.stack.projections(stage.layer, frozenset({"query", "key"}))
                adapter.stack.check_attention_rows(stage.layer)
                adapter.stack.entering_norm(stage.layer)
            if "final_norm" in stage.pruner.needs:
                adapter.stack.final_norm()

    def _check_tower(self, adapter: Adapter) -> None:
        """Refuse towers that do not show what the method reads."""
        sites = self.tower_sites(adapter)
        if self.reads_tower_value and any(site.value is None for _, site in sites):
            raise UnsupportedModelError(
                f"the vision tower of {adapter.name!r} has no value states", "read its query, key or hidden states"
            )
        for stage in self.stages:
            if stage.pruner.requires_class_token and not all(site.has_class_token for _, site in sites):
                raise UnsupportedModelError(
                    f"{type(stage.pruner).__name__} reads the attention of a class token, and the vision tower of"
                    f" {adapter.name!r} has none (or keeps it as a visual token)",
                    "use a method that reads the attention of all patches, or another model",
                )


def _check_cut(adapter: Adapter) -> None:
    """Refuse models of which not every layer's cache can be cut exactly."""
    try:
        adapter.stack.check_exact(0)
        _check_attention(adapter, 0)
    except (UnsupportedModelError, UnsupportedFeatureError) as error:
        raise type(error)(f"cut_earlier_caches: {error.what}", "set cut_earlier_caches to false") from error


def _check_attention(adapter: Adapter, first: int) -> None:
    """Refuse attention implementations that cannot be pruned exactly from layer ``first`` on."""
    implementation = adapter.stack.attention_implementation
    if "flash" not in implementation:
        if implementation not in ("sdpa", "eager"):
            raise UnsupportedFeatureError(
                f"attention implementation {implementation!r} is not supported", "use sdpa, eager or flash_attention_2"
            )
        return
    for layer in range(first, adapter.num_layers):
        if adapter.stack.kind(layer) != "full_attention":
            # the kernel counts its window in kept tokens, the model means original positions
            raise UnsupportedFeatureError(
                f"{implementation} cannot prune layer {layer} ({adapter.stack.kind(layer)}) exactly",
                "use sdpa or eager",
            )
