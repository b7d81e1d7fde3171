"""Another pruner at every stage."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from tokenprune.component import FromRegistry
from tokenprune.context import PruneContext
from tokenprune.errors import ConfigError
from tokenprune.pruners.base import Pruner, Selection


class Stages(Pruner):
    """Combine methods: each stage of the layer selector has a pruner of its own.

    A pruner sees at its stage what it would see alone, on the tokens that the earlier stages left; only what it needs
    is observed before its layer.

    Attributes:
        pruners: One pruner per stage, in the order of the layers.
    """

    pruners: tuple[Annotated[Pruner, FromRegistry("pruners")], ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _flat(self) -> Self:
        if any(isinstance(pruner, Stages) for pruner in self.pruners):
            raise ValueError("stages within stages: list all pruners in one")
        return self

    @property
    def needs(self) -> frozenset[str]:
        """What any of them needs; the engine asks each by :meth:`at`."""
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
        """Never called: the pruner of a stage, see :meth:`at`, selects."""
        raise ConfigError("stages select by the pruner of each stage", "call select of at(stage)")
