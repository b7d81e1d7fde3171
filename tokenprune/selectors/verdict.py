"""The outcome of a verification of layers, as data that a profile file keeps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator


class VerdictRow(BaseModel):
    """One way to prune that was verified: a row of the table that a verdict is made from.

    Attributes:
        layer: Tokens are dropped before this layer.
        fields: The verified fields of the pruner, by path, with their values.
        samples: Calibration samples seen; a clearly worse candidate left early.
        agreement: Share of answer tokens that equal the unpruned model's, mean over these samples; None if refused.
        divergence: ``KL(unpruned || pruned)`` of the next token in nats, mean over these samples; None if refused.
        average: Visual tokens averaged over all layers, mean over these samples; None if refused.
        refused: Why the candidate cannot run; None if it ran.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    layer: int = Field(ge=1)
    fields: dict[str, Any] = Field(default_factory=dict)
    samples: int = Field(ge=0)
    agreement: float | None = None
    divergence: float | None = None
    average: float | None = None
    refused: str | None = None

    @property
    def name(self) -> str:
        """The candidate in words, e.g. ``layer 3, source hidden``."""
        return ", ".join(
            [f"layer {self.layer}", *(f"{path.rpartition('.')[2]} {value}" for path, value in self.fields.items())]
        )


class Verdict(BaseModel):
    """The outcome of one verification.

    Attributes:
        definition: The verified method as data, without its label and its selector's profile file. A verdict
            holds for a method that is equal in all of it, budget included.
        layer: The chosen layer.
        fields: The chosen values of the verified fields, by path.
        reason: Why, in one sentence.
        candidates: All candidates.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    definition: dict[str, Any]
    layer: int = Field(ge=1)
    fields: dict[str, Any] = Field(default_factory=dict)
    reason: str
    candidates: tuple[VerdictRow, ...]

    @model_validator(mode="after")
    def _one_of_the_candidates(self) -> Verdict:
        ran = [(item.layer, item.fields) for item in self.candidates if item.refused is None]
        if (self.layer, self.fields) not in ran:
            raise ValueError(f"layer {self.layer} with {self.fields} is none of the candidates that ran")
        return self


def verdict_key(definition: Mapping[str, Any]) -> dict[str, Any]:
    """Key of a stored verdict: the method's definition without its profile file."""
    layers = {name: value for name, value in definition["layers"].items() if name != "profile_file"}
    return {**definition, "layers": layers}
