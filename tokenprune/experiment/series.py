"""One series of an experiment: a method with a budget and, if the method is random, a seed."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any

from tokenprune.budgets.base import Budget
from tokenprune.config import Method
from tokenprune.core.component import Component, FromRegistry
from tokenprune.core.references import ORACLE
from tokenprune.errors import BudgetError
from tokenprune.experiment.tuned import Tune
from tokenprune.fingerprint.definition import Definition, with_code
from tokenprune.models.downsample import check_budget


class Downsampled(Component):
    """Smaller pictures in place of pruning; see :mod:`tokenprune.models.downsample`.

    Attributes:
        budget: States the visual tokens, as if they were dropped before the first decoder layer.
    """

    budget: Annotated[Budget, FromRegistry("budgets")]


def fits(budget: Budget) -> bool:
    """Whether a budget states a number of tokens that a smaller picture can have."""
    try:
        check_budget(budget)
    except BudgetError:
        return False
    return True


@dataclass(frozen=True)
class Series:
    """One method, budget and seed that an experiment runs over all samples.

    Attributes:
        method_name: The method's name in tables.
        method: The method; None for the unpruned model and for smaller pictures, and where a tune chooses it.
        seed: The seed, or None.
        budget: The budget in a few words, or None.
        settings: For which model the settings were published, and where, in words; None for the method's own.
        tune: How the method is chosen; None if it is stated.
        downsampled: How small the pictures are in place of pruning; None if the model is shown them as they are.
    """

    method_name: str
    method: Method | None
    seed: int | None
    budget: str | None
    settings: str | None = None
    tune: Tune | None = None
    downsampled: Downsampled | None = None

    @property
    def unpruned(self) -> bool:
        """Whether this is the unpruned model."""
        return self.method is None and self.tune is None and self.downsampled is None

    @property
    def oracle(self) -> bool:
        """Whether this is the upper bound, which knows the objects' pixels."""
        return self.method_name == ORACLE

    @property
    def key(self) -> str:
        """The name of the series in result files."""
        labels = [self.method_name, self.budget, None if self.seed is None else f"seed {self.seed}"]
        return " / ".join(label for label in labels if label is not None)

    @property
    def definition(self) -> dict[str, Any] | None:
        """The fields of the method or its tune, JSON-ready: results under :attr:`key` were computed with them."""
        if self.tune is not None:
            return {"tuned": self.tune.model_dump(mode="json")}
        if self.downsampled is not None:
            return {"downsampled": self.downsampled.model_dump(mode="json")}
        return self.method.model_dump(mode="json", exclude={"label"}) if self.method else None


def definitions(series: Iterable[Series]) -> dict[str, Definition]:
    """The definition of every series by its key, with the versions of the code of its method."""
    kept = list(series)
    made = {item.key: item.method or item.downsampled for item in kept}
    return with_code({item.key: item.definition for item in kept}, made)
