"""The contract of a layer selector."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any

from torch import Tensor

from tokenprune.core.architecture import Architecture
from tokenprune.core.component import Component
from tokenprune.selectors.entropy_profile import EntropyProfile
from tokenprune.selectors.verdict import Promise, trial_name


@dataclass(frozen=True)
class Trial:
    """A way to carry a method out, to be compared with others on the calibration samples.

    Attributes:
        layers: Layers before which tokens are dropped.
        pruner: The pruner: the method's own, or another one.
        setting: What distinguishes the pruner from those of other trials before the same layers, in words.
        standard: Whether this trial is taken unless another is clearly better.
    """

    layers: tuple[int, ...]
    pruner: Component
    setting: str = ""
    standard: bool = False

    @property
    def name(self) -> str:
        """The trial in words, e.g. ``layer 3, source hidden`` or ``layers 0 and 3``."""
        return trial_name(self.layers, self.setting)


@dataclass(frozen=True)
class TrialResult:
    """The closeness of a trial's answers to the unpruned model's.

    The trials race: one that is clearly worse than another leaves early. All see the samples in the same order, so the
    shorter tuples are comparable with the beginning of the longer ones.

    Attributes:
        agreement: Per sample, 1 if the first token of the answer is the unpruned model's, else 0.
        divergence: Per sample, ``KL(unpruned || pruned)`` of the next-token distributions in nats.
        average: Visual tokens averaged over all layers, mean over the samples; NaN if refused.
        refused: Why the trial cannot run; None if it ran.
    """

    agreement: tuple[float, ...]
    divergence: tuple[float, ...]
    average: float
    refused: str | None = None


@dataclass(frozen=True)
class SelectorContext:
    """A model, and the method that layers are selected for, as layer selectors see them.

    Attributes:
        family: The adapter's name, e.g. ``"llava"``.
        num_layers: Number of decoder layers.
        measure_entropy: Runs the calibration samples through the unpruned model and returns its entropy curves.
            None if :func:`tokenprune.apply` got no calibration samples.
        last_logits: Runs the calibration samples with the method pruning before the given layer (None: unpruned) and
            returns the logits at the last prompt token, float32 ``[samples, vocabulary]`` on the host. None without
            calibration samples.
        pruner: The method's pruner.
        compare: Runs trials of the method on the calibration samples, next to the unpruned model. None without
            calibration samples.
        refusal: Says why the method's budget cannot be met on the calibration samples by pruning before the given
            layers; None if it can. None without calibration samples.
        definition: The method as JSON-ready data, without its label: what a stored verdict must have been made for.
            None where it is unknown.
        remember: Keeps entropy curves with their verdicts for the next call with the same model and calibration
            samples. None where nothing is kept.
        fingerprint: Computes the model's :func:`~tokenprune.fingerprint.fingerprint`, which is None if its weights
            cannot be read. None where it is not asked for.
        tower_layers: Layers of the vision tower; None where it cannot be read.
        architecture: The sizes and names that decide whether a layer that was published for one model fits this one.
            None where they are unknown: nothing published fits then.
    """

    family: str
    num_layers: int
    _: KW_ONLY
    measure_entropy: Callable[[], EntropyProfile] | None = None
    last_logits: Callable[[int | None], Tensor] | None = None
    pruner: Component | None = None
    compare: Callable[[Sequence[Trial]], list[TrialResult]] | None = None
    refusal: Callable[[tuple[int, ...]], str | None] | None = None
    definition: Mapping[str, Any] | None = None
    remember: Callable[[EntropyProfile], None] | None = None
    fingerprint: Callable[[], str | None] | None = None
    architecture: Architecture | None = None
    tower_layers: int | None = None


@dataclass(frozen=True)
class LayerChoice:
    """The layers that a selector chose.

    Attributes:
        layers: The layers before which tokens are dropped, ascending.
        reason: Why these layers, in one sentence.
        pruner: The pruner that takes the place of the method's own, where the selector also chose among the values of
            the pruner's fields; None leaves the method's own.
        promise: How closely the choice follows the unpruned model, where that was verified.
    """

    layers: tuple[int, ...]
    reason: str
    pruner: Component | None = None
    promise: Promise | None = None


class LayerSelector(Component, ABC):
    """Chooses the decoder layers before which tokens are dropped. Layer 0 means the input of the decoder."""

    @property
    def verifies(self) -> bool:
        """Whether :meth:`select` compares trials on the calibration samples and remembers a verdict."""
        return False

    @property
    def runs_the_method(self) -> bool:
        """Whether :meth:`select` runs the method on the calibration samples: its choice then depends on the budget."""
        return self.verifies

    @property
    def verified_fields(self) -> tuple[str, ...]:
        """Paths of the pruner's fields whose alternatives are compared together with the layers."""
        return ()

    def known_layers(self, ctx: SelectorContext) -> tuple[int, ...] | None:
        """Check what can be checked before anything is measured, so that hours are not lost to a wrong number.

        Args:
            ctx: The model and the method, without anything that runs the model.

        Returns:
            The layers that :meth:`select` will choose, if they do not depend on a measurement; else None.

        Raises:
            LayerError: A layer that is stated does not exist in the model.
        """
        return None

    def earlier_trials(self, tower_layers: int | None) -> list[Trial]:
        """Ways to carry the method out before layer 0 that :meth:`select` may choose instead of the method's pruner.

        Args:
            tower_layers: Layers of the model's vision tower; None where it cannot be read.
        """
        return []

    @abstractmethod
    def select(self, ctx: SelectorContext) -> LayerChoice:
        """Choose the layers.

        Args:
            ctx: The model and the method.

        Raises:
            LayerError: A layer does not exist in the model, or none can be chosen.
        """
