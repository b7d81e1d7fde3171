"""A different pruner at every stage."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from tokenprune.core.component import FromRegistry
from tokenprune.errors import ConfigError
from tokenprune.pruners.base import Pruner, Selection
from tokenprune.signals.context import PruneContext


class Stages(Pruner):
    """Combine methods: each stage of the layer selector has a pruner of its own.

    A pruner reads at its stage what it would read alone, of the tokens that the earlier stages kept. Only the signals
    that it needs are captured before its layer.

    Attributes:
        pruners: One pruner per stage, in the order of the layers.
    """

    pruners: tuple[Annotated[Pruner, FromRegistry("pruners")], ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _refuse_nesting(self) -> Self:
        if any(isinstance(pruner, Stages) for pruner in self.pruners):
            raise ValueError("stages within stages are not supported: list all pruners in one")
        return self

    @property
    def needs(self) -> frozenset[str]:
        """The signals of all pruners. For each stage the engine captures what its own pruner needs."""
        return frozenset().union(*(pruner.needs for pruner in self.pruners))

    def check(self, layers: tuple[int, ...]) -> None:
        """See :meth:`tokenprune.pruners.base.Pruner.check`."""
        if len(self.pruners) != len(layers):
            raise ConfigError(
                f"{len(self.pruners)} pruners for pruning before {len(layers)} layers ({', '.join(map(str, layers))})",
                "give one pruner per stage",
            )

    def at(self, stage: int) -> Pruner:
        """See :meth:`tokenprune.pruners.base.Pruner.at`."""
        return self.pruners[stage]

    def select(self, ctx: PruneContext) -> Selection:
        """Always an error: the engine calls the pruner of each stage, see :meth:`at`."""
        raise ConfigError("stages does not select by itself", "call at(stage).select(ctx)")
