"""The outcome of a verification of layers, as data that a profile file keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator


def trial_name(layers: Sequence[int], setting: str) -> str:
    """A way to prune in words, e.g. ``layer 3, source hidden`` or ``layers 0 and 3``."""
    where = f"layer{'s' if len(layers) > 1 else ''} {' and '.join(map(str, layers))}"
    return f"{where}, {setting}" if setting else where


class Promise(BaseModel):
    """How closely a verified choice follows the unpruned model: on the samples that chose it, and on new ones.

    Attributes:
        agreement: Share of the calibration samples on which the first token of the answer is the unpruned model's.
        corrected: That share without the gain from having been picked; see
            :func:`tokenprune.stats.bootstrap.corrected`.
        low: Lower end of the 95 % interval of ``corrected``.
        high: Upper end.
        samples: Calibration samples.
        candidates: Ways to prune that were compared.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    agreement: float
    corrected: float
    low: float
    high: float
    samples: int
    candidates: int


class VerdictRow(BaseModel):
    """One way to prune that was verified: a row of the table that a verdict is made from.

    Attributes:
        layers: Tokens are dropped before these layers.
        setting: The pruner in words, as far as it differs from those of other candidates.
        samples: Calibration samples seen; a clearly worse candidate left early.
        agreement: Share of answer tokens that equal the unpruned model's, mean over these samples; None if refused.
        divergence: ``KL(unpruned || pruned)`` of the next token in nats, mean over these samples; None if refused.
        average: Visual tokens averaged over all layers, mean over these samples; None if refused.
        refused: Why the candidate cannot run; None if it ran.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    layers: tuple[int, ...] = Field(min_length=1)
    setting: str = ""
    samples: int = Field(ge=0)
    agreement: float | None = None
    divergence: float | None = None
    average: float | None = None
    refused: str | None = None

    @property
    def name(self) -> str:
        """The candidate in words, e.g. ``layer 3, source hidden``."""
        return trial_name(self.layers, self.setting)


class Verdict(BaseModel):
    """The outcome of one verification.

    Attributes:
        definition: The verified method as data, without its label and its selector's profile file. A verdict
            holds for a method that is equal in all of it, budget included.
        layers: The chosen layers.
        setting: The chosen pruner in words.
        pruner: The chosen pruner as data.
        promise: How closely the choice follows the unpruned model.
        reason: Why, in one sentence.
        candidates: All candidates.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    definition: dict[str, Any]
    layers: tuple[int, ...]
    setting: str = ""
    pruner: dict[str, Any]
    promise: Promise
    reason: str
    candidates: tuple[VerdictRow, ...]

    @model_validator(mode="after")
    def _one_of_the_candidates(self) -> Verdict:
        ran = [(item.layers, item.setting) for item in self.candidates if item.refused is None]
        if (self.layers, self.setting) not in ran:
            raise ValueError(f"{trial_name(self.layers, self.setting)} is none of the candidates that ran")
        return self


def verdict_key(definition: Mapping[str, Any]) -> dict[str, Any]:
    """Key of a stored verdict: the method's definition without its profile file."""
    layers = {name: value for name, value in definition["layers"].items() if name != "profile_file"}
    return {**definition, "layers": layers}
