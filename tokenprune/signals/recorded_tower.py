"""One layer of a vision tower as it ran, as scorers and pruners read it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from tokenprune.ops.vision import StateSource, TowerLayer, TowerRuns


@dataclass(frozen=True)
class RecordedTower:
    """Implements :class:`tokenprune.signals.signals.TowerSignals` for all features that the tower made.

    Attributes:
        layer: The layer, of all images and then of all videos.
        counts: Visual tokens per sample before any stage.
        repeats: Times that the prompts repeat each sample that the tower got, as beams.
        projector: See :attr:`tokenprune.signals.signals.TowerSignals.projector`.
    """

    layer: TowerLayer | TowerRuns
    counts: Sequence[int]
    repeats: int
    projector: Callable[[Tensor], Tensor] | None

    @property
    def attention(self) -> Tensor:
        """See :attr:`tokenprune.signals.signals.TowerSignals.attention`."""
        return self.layer.attention

    @property
    def received(self) -> Tensor:
        """See :attr:`tokenprune.signals.signals.TowerSignals.received`."""
        return self.layer.received

    @property
    def key(self) -> Tensor:
        """See :attr:`tokenprune.signals.signals.TowerSignals.key`."""
        return self.layer.mean_key

    @property
    def features(self) -> Tensor:
        """See :attr:`tokenprune.signals.signals.TowerSignals.features`."""
        return self.layer.mean_output

    def states(self, source: StateSource) -> Tensor:
        """See :meth:`tokenprune.signals.signals.TowerSignals.states`."""
        return self.layer.states(source)

    @property
    def tiles(self) -> Sequence[Tensor] | None:
        """See :attr:`tokenprune.signals.signals.TowerSignals.tiles`."""
        if self.layer.tiles is None:
            return None
        samples = self.layer.tiles.split(list(self.counts[:: self.repeats]))
        return [sample for sample in samples for _ in range(self.repeats)]
